"""Commands that write and embed whole corpora."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import app, errors, told_plainly

if TYPE_CHECKING:
    from hf_sllm.corpus import Corpus

# Options of both commands.
Model = Annotated[str, typer.Argument(help="Path or name of a model.")]
Data = Annotated[list[str], typer.Option(help="Files of rows, or a dataset on the Hub; may be repeated.")]
Output = Annotated[Path, typer.Option(help="A folder for the parts and the manifest; the same one to go on.")]
Split = Annotated[str, typer.Option(help="The split of a dataset on the Hub.")]
TextColumn = Annotated[str, typer.Option(help="The column that holds the text.")]
IdColumn = Annotated[str | None, typer.Option(help="The column that names each row; by default `id`, if there.")]
PartRows = Annotated[int, typer.Option(min=1, help="Rows of a part, which is lost if the run is killed in it.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows at a time.")]
Dtype = Annotated[str, typer.Option(help="Of the weights, such as `bfloat16`; `auto` is the checkpoint's.")]
ShardOption = Annotated[
    str | None, typer.Option(help="Which of how many processes this is: 0/4 to 3/4. torchrun's are known.")
]


@app.command()
def write(
    model: Model,
    data: Data,
    output: Output,
    max_sentences: Annotated[int, typer.Option(min=1, help="Write at most so many sentences.")] = 20,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Write at most so many tokens.")] = 400,
    temperature: Annotated[float | None, typer.Option(help="Above 0; by default the model's own, or 1.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from the likeliest so much.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample from the likeliest so many tokens.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest token each time.")] = False,
    seed: Annotated[int, typer.Option(help="Of the sampling, beside each row's id.")] = 0,
    split: Split = "train",
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    part_rows: PartRows = 1000,
    batch_size: BatchSize = 32,
    dtype: Dtype = "auto",
    shard: ShardOption = None,
) -> None:
    """Continue each row of some data with an SLLM; a run that was killed goes on."""
    with told_plainly(), told_how_to_go_on(output):
        import os

        from transformers.utils import logging

        from hf_sllm.corpus import Job, Shard, WriteSettings, write_corpus

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        which = Shard.find(shard, os.environ)
        job = Job(model, data, output, split, text_column, id_column, part_rows, batch_size, dtype, which)
        settings = WriteSettings(max_sentences, max_new_tokens, greedy, temperature, top_k, top_p, seed)
        print_corpus(write_corpus(job, settings), output)


@app.command()
def embed(
    model: Model,
    data: Data,
    output: Output,
    latent_dtype: Annotated[
        str, typer.Option(help="Of the latents that are kept: `float16` or `float32`.")
    ] = "float16",
    split: Split = "train",
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    part_rows: PartRows = 1000,
    batch_size: BatchSize = 32,
    dtype: Dtype = "auto",
    shard: ShardOption = None,
) -> None:
    """Make the latents of each sentence of some data; a run that was killed goes on."""
    with told_plainly(), told_how_to_go_on(output):
        import os

        from transformers.utils import logging

        from hf_sllm.corpus import EmbedSettings, Job, Shard, embed_corpus

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        which = Shard.find(shard, os.environ)
        job = Job(model, data, output, split, text_column, id_column, part_rows, batch_size, dtype, which)
        print_corpus(embed_corpus(job, EmbedSettings(latent_dtype)), output)


def print_corpus(found: "Corpus", output: Path) -> None:
    """What is there now, on standard error."""
    told = f"{output}: {found.rows:,} rows in {found.parts:,} parts, {found.errors:,} of them with an error"
    left = "" if found.complete else "; other processes have parts to write, or some were stopped"
    errors.print(told + left, style="dim", highlight=False, soft_wrap=True)


@contextmanager
def told_how_to_go_on(output: Path) -> Iterator[None]:
    """Says after Ctrl-C what is kept, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print(
            f"Stopped. The finished parts are in {output}; the same command goes on after them.",
            highlight=False,
            soft_wrap=True,
        )
        raise
