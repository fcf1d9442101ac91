"""Commands that measure how good a model is."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .common import app, load_with_latents, told_plainly


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Path or name of any causal language model, or of a sentence VAE.")],
    data: Annotated[list[str], typer.Option(help="A file of documents, or a dataset on the Hub; may be repeated.")],
    against: Annotated[str | None, typer.Option(help="The model to hold it against: its backbone, or any.")] = None,
    measures: Annotated[str | None, typer.Option(help="Some of them, with commas between; by default all.")] = None,
    split: Annotated[str, typer.Option(help="The split of a dataset on the Hub.")] = "validation",
    text_column: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    limit: Annotated[int | None, typer.Option(min=1, help="So many documents only, spread over all.")] = None,
    max_bytes: Annotated[int | None, typer.Option(min=4, help="Cut documents into pieces of so many bytes.")] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Tokens read at once; by default all both can.")] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="New tokens of each further window; default: half.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Documents at a time.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    output: Annotated[Path | None, typer.Option(help="A folder for evaluation.json and evaluation.png.")] = None,
) -> None:
    """Measure a model and one to hold it against: bits per byte, use of context, writing, what is reconstructed."""
    with told_plainly():
        from transformers.utils import logging

        from hf_sllm.data import cut_documents, load_documents, spread
        from hf_sllm.evaluation import evaluate as run
        from hf_sllm.evaluation.plots import plot_evaluation
        from hf_sllm.evaluation.tables import print_evaluation

        logging.disable_progress_bar()
        documents = load_documents(data, split, text_column)
        if max_bytes is not None:
            documents = cut_documents(documents, max_bytes)
        found = run(
            model,
            spread(documents, limit),
            data,
            against,
            None if measures is None else [name.strip() for name in measures.split(",")],
            window,
            stride,
            batch_size,
            seed,
            keep=None if output is None else lambda found: found.save(output / "evaluation.json"),
        )
        print_evaluation(found, Console())
        if output is not None:
            plot_evaluation(found, output / "evaluation.png")
    if not any(side.figures for side in found.sides):
        raise typer.Exit(1)


@app.command(
    "lm-eval",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    no_args_is_help=True,
)
def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness, to which SLLMs and our tasks are known: sllm_cloze, sllm_gsm8k, sllm_bits_per_byte.

    All arguments go to its own command; `hf-sllm lm-eval -- run --help` lists them.
    """
    with told_plainly():
        from hf_sllm.harness import run

        run(context.args)


@app.command("paper-check")
def paper_check(
    steps: Annotated[int, typer.Option(min=1, help="Of training, in each way.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights and of the texts.")] = 0,
) -> None:
    """Show on random tokens that wrong masks score below the entropy, and right ones do not."""
    with told_plainly():
        from hf_sllm.evaluation.paper_check import paper_check as check

        rows = check(steps, seed)
    table = Table(title=f"Bits per token of independent uniform tokens, {steps} steps, seed {seed}")
    for name in ("", "bits per token", "entropy", "difference", "standard error", "below the entropy"):
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.bits_per_token:.4f}",
            f"{row.entropy:.4f}",
            f"{row.bits_per_token - row.entropy:+.4f}",
            f"{row.standard_error:.4f}",
            "yes" if row.below else "no",
            style="red" if row.below else None,
        )
    Console().print(table)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Path or name of an SLLM or of a sentence VAE.")],
    data: Annotated[str, typer.Option(help="A file of documents, or a dataset on the Hub.")],
    split: Annotated[str, typer.Option(help="The split of a dataset on the Hub.")] = "validation",
    text_column: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    limit: Annotated[int, typer.Option(min=1, help="The first so many sentences only.")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Documents at a time.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder for latents.json and latents.png.")] = None,
) -> None:
    """Show how healthy the latents are: what they hold, what of it is used, and how much noise they bear."""
    with told_plainly():
        from hf_sllm.data import load_documents
        from hf_sllm.inspection import inspect_latents, plot_latents, print_latents

        inspected, tokenizer = load_with_latents(model)
        health = inspect_latents(
            inspected, tokenizer, load_documents(data, split, text_column), limit, batch_size, seed
        )
        print_latents(health, model, Console())
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            health.save(output / "latents.json")
            plot_latents(health, output / "latents.png", model)


@app.command()
def lens(
    model: Annotated[str, typer.Argument(help="Path or name of an SLLM.")],
    text: Annotated[str, typer.Argument(help="Some sentences.")],
    alone: Annotated[
        bool, typer.Option("--alone", help="Write from the latents alone, without the tokens before.")
    ] = False,
) -> None:
    """Show for each sentence of a text what each layer of the backbone would say in its place."""
    with told_plainly():
        from transformers.utils import logging

        from hf_sllm.inspection import print_lens, sentence_lens

        logging.disable_progress_bar()
        print_lens(sentence_lens(*load_with_latents(model), text, alone), Console())


@app.command()
def futures(
    model: Annotated[str, typer.Argument(help="Path or name of an SLLM.")],
    text: Annotated[str, typer.Argument(help="Some sentences.")],
    following: Annotated[str | None, typer.Option(help="The sentence that does follow.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many futures, where latents are sampled.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of the first one.")] = 0,
    output: Annotated[Path | None, typer.Option(help="An SVG, PNG or PDF of them on a plane.")] = None,
) -> None:
    """Show which sentences a model expects after a text, and how often, written from their latents alone."""
    with told_plainly():
        from transformers.utils import logging

        from hf_sllm.inspection import plot_futures, print_futures, sentence_futures

        logging.disable_progress_bar()
        found = sentence_futures(*load_with_latents(model), text, count, following, seed)
        print_futures(found, Console())
        if output is not None:
            plot_futures(found, output)
