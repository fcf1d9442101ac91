"""Commands that measure speed and memory."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .common import app, told_plainly

bench_app = typer.Typer(help="Measure speed, beside the bare backbone in the same run.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")


@bench_app.command("training")
def bench_training(
    shapes: Annotated[str, typer.Argument(help="Shapes by name, or a model whose config is read.")] = "smollm2-135m",
    sentence_length: Annotated[int, typer.Option(min=2, help="Tokens of each sentence.")] = 16,
    decoder_layers: Annotated[int | None, typer.Option(min=1, help="By default as `from_backbone` has it.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts at a time.")] = 4,
    length: Annotated[int, typer.Option(min=2, help="Tokens of each text.")] = 512,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each side that count.")] = 5,
    bf16: Annotated[bool, typer.Option(help="Matrix products in bfloat16.")] = True,
) -> None:
    """Tokens trained on in a second, by an SLLM and its bare backbone in turn: all weights of each, random ones."""
    with told_plainly():
        from hf_sllm.benchmark import benchmark_training
        from hf_sllm.benchmark.tables import print_training

        found = benchmark_training(shapes, sentence_length, decoder_layers, batch_size, length, steps, bf16)
        print_training(found, Console())


@bench_app.command("predictors")
def bench_predictors(
    shapes: Annotated[str, typer.Argument(help="Shapes by name, or a model whose config is read.")] = "smollm2-135m",
    context_length: Annotated[int, typer.Option(min=1, help="Tokens of the text read.")] = 256,
    sentence_length: Annotated[int, typer.Option(min=2, help="Tokens of each sentence, read or written.")] = 16,
    sentences: Annotated[int, typer.Option(min=2, help="Sentences to write and to predict.")] = 8,
    decoder_layers: Annotated[int | None, typer.Option(min=1, help="By default as `from_backbone` has it.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="How many times each is timed.")] = 3,
) -> None:
    """Each way to predict latents, and the bare backbone: sentences that are written, or only predicted."""
    with told_plainly():
        from transformers.utils import logging

        from hf_sllm.benchmark import benchmark_predictors
        from hf_sllm.benchmark.tables import print_predictors

        logging.set_verbosity_error()
        found = benchmark_predictors(shapes, context_length, sentence_length, sentences, decoder_layers, runs)
        title = f"{shapes}, after {context_length} tokens, sentences of {sentence_length}, float32"
        print_predictors(title, found, Console())


@bench_app.command("generation")
def bench_generation(
    shapes: Annotated[str, typer.Argument(help="Shapes by name, or a model whose config is read.")] = "smollm2-135m",
    context_lengths: Annotated[str, typer.Option(help="Tokens of the text read, with commas between.")] = "256,2048",
    batch_sizes: Annotated[str, typer.Option(help="Texts at a time, with commas between.")] = "1,8",
    sentence_length: Annotated[int, typer.Option(min=2, help="Tokens of each sentence, read or written.")] = 16,
    new_tokens: Annotated[int, typer.Option(min=4, help="Tokens to write, two sentences at least.")] = 64,
    decoder_layers: Annotated[int | None, typer.Option(min=1, help="By default as `from_backbone` has it.")] = None,
    preset: Annotated[str, typer.Option(help="default, or paper: its encoder is as deep as its decoder.")] = "default",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    shortlist: Annotated[
        int | None, typer.Option(min=1, help="The SLLM chooses each sentence's among so many.")
    ] = None,
    sentences_at_once: Annotated[int, typer.Option(min=1, help="The SLLM writes so many side by side.")] = 1,
    memory_layers: Annotated[int, typer.Option(min=0, help="Of the SLLM's memory; 0 for none.")] = 0,
    compiled: Annotated[bool, typer.Option("--compiled", help="Also the backbone compiled, static cache.")] = False,
    runs: Annotated[int, typer.Option(min=1, help="How many times each side is timed.")] = 5,
    output: Annotated[Path | None, typer.Option(help="A folder for bench.json and bench.png.")] = None,
) -> None:
    """Read a text and write on, by an SLLM and its bare backbone in turn: time, memory, and what memory allows."""
    with told_plainly():
        from transformers.utils import logging

        from hf_sllm.benchmark import Settings, benchmark_generation
        from hf_sllm.benchmark.plots import plot_benchmark
        from hf_sllm.benchmark.tables import print_benchmark

        logging.set_verbosity_error()
        settings = Settings(
            shapes,
            numbers(context_lengths),
            numbers(batch_sizes),
            sentence_length,
            new_tokens,
            decoder_layers,
            dtype,
            shortlist,
            compiled,
            runs,
            preset,
            sentences_at_once,
            memory_layers,
        )
        keep = None if output is None else lambda found: found.save(output / "bench.json")
        found = benchmark_generation(settings, keep=keep)
        print_benchmark(found, Console())
        if output is not None:
            plot_benchmark(found, output / "bench.png")


@bench_app.command("profile")
def bench_profile(
    shapes: Annotated[str, typer.Argument(help="Shapes by name, or a model whose config is read.")] = "smollm2-135m",
    context_length: Annotated[int, typer.Option(min=1, help="Tokens of the text read.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts at a time.")] = 1,
    sentence_length: Annotated[int, typer.Option(min=2, help="Tokens of each sentence, read or written.")] = 16,
    new_tokens: Annotated[int, typer.Option(min=4, help="Tokens to write, two sentences at least.")] = 64,
    decoder_layers: Annotated[int | None, typer.Option(min=1, help="By default as `from_backbone` has it.")] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    shortlist: Annotated[int, typer.Option(min=1, help="Tokens of each list.")] = 2048,
    runs: Annotated[int, typer.Option(min=1, help="How many times each is measured.")] = 5,
    output: Annotated[Path | None, typer.Option(help="A folder for profile.json.")] = None,
) -> None:
    """Where the time of a token goes: decoder, LM head, backbone, encoder, the rest, in each way of writing."""
    with told_plainly():
        from transformers.utils import logging

        from hf_sllm.benchmark import benchmark_profile
        from hf_sllm.benchmark.profile import print_profile

        logging.set_verbosity_error()
        found = benchmark_profile(
            shapes,
            context_length,
            batch_size,
            sentence_length,
            new_tokens,
            decoder_layers,
            dtype,
            shortlist,
            runs,
        )
        print_profile(found, Console())
        if output is not None:
            found.save(output / "profile.json")


@bench_app.command("drafting")
def bench_drafting(
    backbone: Annotated[str, typer.Argument(help="Path or name of the model that writes, or of its adapter.")],
    sllm: Annotated[str, typer.Argument(help="Of the SLLM that drafts, or of any model with the same tokens.")],
    data: Annotated[list[str], typer.Option(help="A file of documents, or a dataset on the Hub; may be repeated.")],
    split: Annotated[str, typer.Option(help="The split of a dataset on the Hub.")] = "validation",
    text_column: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    limit: Annotated[int, typer.Option(min=1, help="So many documents, spread over all: their halves.")] = 16,
    max_prompt: Annotated[int, typer.Option(min=1, help="Tokens of the longest prompt.")] = 256,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write, if the text does not end.")] = 128,
    thresholds: Annotated[
        str, typer.Option(help="A draft ends with a token less likely; 0 for whole sentences; commas between.")
    ] = "0,0.4",
    draft_tokens: Annotated[
        int | None, typer.Option(min=1, help="The longest draft; by default the longest sentence.")
    ] = None,
    lookup_tokens: Annotated[int, typer.Option(min=0, help="Of a draft from the text so far; 0 for none.")] = 10,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "float32",
    sample: Annotated[bool, typer.Option("--sample", help="Draw the tokens; by default the likeliest.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the drawing.")] = 0,
    output: Annotated[Path | None, typer.Option(help="A folder for drafting.json.")] = None,
) -> None:
    """A backbone's own text, with an SLLM's drafts, with drafts from the text so far, and without, by turns."""
    with told_plainly():
        from transformers.utils import logging

        from hf_sllm.benchmark import benchmark_drafting
        from hf_sllm.benchmark.drafting import print_drafting
        from hf_sllm.data import load_documents, spread

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        found = benchmark_drafting(
            backbone,
            sllm,
            spread(load_documents(data, split, text_column), limit),
            data,
            new_tokens,
            max_prompt,
            probabilities(thresholds),
            draft_tokens,
            lookup_tokens,
            dtype,
            sample,
            seed,
        )
        print_drafting(found, Console())
        if output is not None:
            found.save(output / "drafting.json")


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between.

    Raises:
        ValueError: If one of them is something else.
    """
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"{text!r} is no list of whole numbers: write it as 256,2048.") from None


def probabilities(text: str) -> list[float]:
    """Likewise, of any numbers."""
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"{text!r} is no list of numbers: write it as 0,0.4.") from None


@bench_app.command("serving")
def bench_serving(
    model: Annotated[str | None, typer.Argument(help="Path or name of an SLLM; by default the embedded one.")] = None,
    clients: Annotated[int, typer.Option(min=1, help="With a prompt each.")] = 32,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of each text.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts that the server writes at a time.")] = 32,
) -> None:
    """Tokens per second of a server asked by many clients at once, beside the same requests in turn."""
    with told_plainly():
        from hf_sllm.embedded import embedded_checkpoint
        from hf_sllm.serving.measure_load import measure_load

        found = measure_load(model or embedded_checkpoint(), clients, max_tokens, batch_size)
        typer.echo(f"{found.clients} clients, {found.tokens} tokens")
        typer.echo(f"in turn  {found.tokens / found.seconds_in_turn:.0f} tokens per second")
        typer.echo(f"at once  {found.tokens / found.seconds_at_once:.0f} tokens per second, {found.speedup:.1f} times")
        typer.echo(f"lost {found.lost}, other answers {found.other_answers}")
