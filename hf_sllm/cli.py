"""The `hf-sllm` command. What is heavy is imported by the command that needs it."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_sllm.data import SentenceStatistics

app = typer.Typer(
    help="A sentence level for any Hugging Face causal language model.", no_args_is_help=True, add_completion=False
)
data_app = typer.Typer(help="Look at data.", no_args_is_help=True)
app.add_typer(data_app, name="data")
bench_app = typer.Typer(help="Measure speed, beside the bare backbone in the same run.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
errors = Console(stderr=True)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the text begins with; it may be empty.")] = "",
    model: Annotated[str | None, typer.Option(help="Path or name of an SLLM; by default the embedded one.")] = None,
    max_sentences: Annotated[int, typer.Option(min=1, help="Write at most so many sentences.")] = 20,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Write at most so many tokens.")] = 400,
    temperature: Annotated[float | None, typer.Option(help="Above 0; lower is more predictable.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="Sample from the likeliest so much.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample from the likeliest so many tokens.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest token each time.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of the sampling; by default a new one each time.")] = None,
) -> None:
    """Write a text, sentence by sentence."""
    if greedy and (temperature, top_p, top_k) != (None, None, None):
        raise typer.BadParameter("--greedy takes no --temperature, --top-p or --top-k.")
    if temperature is not None and temperature <= 0:
        raise typer.BadParameter("--temperature must be above 0; for the likeliest text there is --greedy.")
    with told_plainly():
        import torch
        from transformers import set_seed
        from transformers.utils import logging

        from hf_sllm.data import start_token_id
        from hf_sllm.streaming import SentenceStreamer

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        language_model, tokenizer = load_sllm(model or embedded_checkpoint())
        seed = torch.seed() % 2**31 if seed is None else seed
        set_seed(seed)
        given = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
        sampling = {name: value for name, value in given.items() if value is not None}
        ids = [start_token_id(tokenizer), *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        streamer = SentenceStreamer(tokenizer, lambda text: typer.echo(text, nl=False))
        input_ids = torch.tensor([ids])
        language_model.generate(  # type: ignore[operator]
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_sentences=max_sentences,
            max_new_tokens=max_new_tokens,
            do_sample=not greedy,
            streamer=streamer,
            **sampling,
        )
    typer.echo()
    errors.print(
        f"{streamer.sentences} sentences, {streamer.tokens} tokens, "
        f"{streamer.tokens / streamer.seconds:.0f} tokens per second" + ("" if greedy else f", seed {seed}"),
        style="dim",
        highlight=False,
    )


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that comes with the package.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    output_dir: Annotated[Path | None, typer.Option(help="Where to save; by default what the recipe says.")] = None,
) -> None:
    """Train an SLLM by a recipe, and measure it beside its baseline."""
    with told_plainly():
        from hf_sllm.training import load_recipe
        from hf_sllm.training import train as run

        run(load_recipe(recipe, output_dir), resume=resume)


@app.command()
def ablate(
    file: Annotated[str, typer.Argument(help="A YAML file of variants, or the name of one of the package's.")],
    output_dir: Annotated[Path, typer.Option(help="Where to save; what is there already is not trained again.")],
) -> None:
    """Train variants of a recipe, one change at a time, and measure them beside one baseline."""
    with told_plainly():
        from hf_sllm.training.ablation import ablate as run

        run(file, output_dir)


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
        import torch

        from hf_sllm.benchmark import make_pair, measure_training, random_text

        device = "cuda" if torch.cuda.is_available() else "cpu"
        backbone, sllm = make_pair(shapes, sentence_length, decoder_layers)
        token_ids = random_text(batch_size, length, sentence_length, backbone.config.vocab_size).to(device)
        speed = measure_training(backbone, sllm, token_ids, steps, bf16)
    title = f"{shapes}, {batch_size} x {length} tokens, sentences of {sentence_length}, {device}"
    table = Table(title=title)
    for name in ("", "tokens per second", "ratio", "parameters"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("backbone", f"{speed.backbone:,.0f}", "", f"{backbone.num_parameters():,}")
    layers = sllm.config.sentence_decoder_config.num_hidden_layers
    table.add_row(
        f"SLLM, decoder of {layers} layers", f"{speed.sllm:,.0f}", f"{speed.ratio:.2f}", f"{sllm.num_parameters():,}"
    )
    Console().print(table)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Path or name of any causal language model, or of a sentence VAE.")],
    data: Annotated[str, typer.Argument(help="A file of documents, or a dataset on the Hub.")],
    split: Annotated[str, typer.Option(help="The split of a dataset on the Hub.")] = "validation",
    text_column: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    limit: Annotated[int | None, typer.Option(min=1, help="So many documents only, spread over all.")] = None,
    max_bytes: Annotated[int | None, typer.Option(min=4, help="Cut documents into pieces of so many bytes.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Documents at a time.")] = 16,
) -> None:
    """Measure bits per byte, beside the floor if the data tells it; of a sentence VAE, what it reconstructs."""
    with told_plainly():
        import torch
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

        from hf_sllm.data import cut_documents, load_documents, spread
        from hf_sllm.evaluation import bits_per_byte, entropy_floor, reconstruction

        documents = load_documents(data, split, text_column)
        if max_bytes is not None:
            documents = cut_documents(documents, max_bytes)
        documents = spread(documents, limit)
        tokenizer = AutoTokenizer.from_pretrained(model)
        is_vae = AutoConfig.from_pretrained(model).model_type == "sentence_vae"
        auto_class = AutoModel if is_vae else AutoModelForCausalLM
        evaluated = auto_class.from_pretrained(model, dtype=torch.float32)
        evaluated.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
        if is_vae:
            copied = reconstruction(evaluated, tokenizer, documents, batch_size)
            figures = {
                "tokens right": f"{copied.token_accuracy:.2%}",
                "next tokens right": f"{copied.next_token_accuracy:.2%}",
                "exact sentences": f"{copied.exact_sentences:.2%}",
                "tokens": f"{copied.tokens:,}",
                "sentences": f"{copied.sentences:,}",
                "seconds": f"{copied.seconds:.1f}",
            }
        else:
            found = bits_per_byte(evaluated, tokenizer, documents, batch_size)
            figures = {
                "bits per byte": f"{found.bits_per_byte:.4f}",
                "tokens": f"{found.tokens:,}",
                "bytes": f"{found.bytes:,}",
                "seconds": f"{found.seconds:.1f}",
            }
        floor = None if is_vae else entropy_floor(documents)
    table = Table(title=f"{data}, {len(documents)} documents")
    table.add_column("")
    for name in figures:
        table.add_column(name, justify="right")
    if floor is not None:
        table.add_row("floor", f"{floor:.4f}")
    table.add_row(model, *figures.values())
    Console().print(table)


@data_app.command()
def stats(
    source: Annotated[list[str], typer.Argument(help="Files of documents, or datasets on the Hub (name:config).")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Path or name of a tokenizer; by default the embedded checkpoint's.")
    ] = None,
    unit: Annotated[str, typer.Option(help="`sentence` or `clause`.")] = "sentence",
    max_sentence_length: Annotated[int, typer.Option(min=1, help="A sentence is cut at so many tokens.")] = 64,
    split: Annotated[str, typer.Option(help="The split of a dataset on the Hub.")] = "train",
    text_column: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many documents only.")] = None,
    streaming: Annotated[bool, typer.Option("--streaming", help="Read on the way, keeping nothing on disk.")] = False,
    output: Annotated[Path | None, typer.Option(help="A folder for sentences.json and sentences.png.")] = None,
) -> None:
    """Measure how long sentences are, and what a maximum length cuts."""
    with told_plainly():
        import dataclasses
        import json

        from transformers import AutoTokenizer

        from hf_sllm.data import load_documents, plot_sentence_lengths, sentence_rule, sentence_statistics

        name = tokenizer or embedded_checkpoint()
        used = AutoTokenizer.from_pretrained(name)
        rule = sentence_rule(used, unit, max_sentence_length)
        documents = load_documents(source, split, text_column, limit, streaming=streaming)
        found = sentence_statistics(documents, used, rule)
        print_statistics(found)
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            about = {"source": source, "limit": limit, "tokenizer": name, "unit": unit, **dataclasses.asdict(found)}
            (output / "sentences.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            plot_sentence_lengths(found, output / "sentences.png")


def print_statistics(found: "SentenceStatistics") -> None:
    """Two tables: how long the sentences are, and what each maximum length cuts."""
    console = Console()
    table = Table(
        title=f"{found.documents:,} documents, {found.sentences:,} sentences",
        caption=f"{found.single_tokens:,} sentences are a single token",
    )
    for name in ("", "in all", "mean", "median", "90 %", "99 %", "longest"):
        table.add_column(name, justify="right" if name else "left")
    for unit, total, lengths in (
        ("tokens", found.tokens, found.tokens_per_sentence),
        ("bytes", found.bytes, found.bytes_per_sentence),
    ):
        figures = (lengths.median, lengths.p90, lengths.p99, lengths.max)
        table.add_row(unit, f"{total:,}", f"{lengths.mean:.1f}", *(f"{figure:,}" for figure in figures))
    console.print(table)

    table = Table(title="What a maximum sentence length does")
    for name in ("tokens at most", "sentences", "tokens each", "sentences cut", "tokens in these"):
        table.add_column(name, justify="right")
    for cut in found.cuts:
        table.add_row(
            str(cut.max_sentence_length),
            f"{cut.sentences:,}",
            f"{cut.tokens_per_sentence:.1f}",
            f"{cut.cut_sentences:.1%}",
            f"{cut.cut_tokens:.1%}",
            style="bold" if cut.max_sentence_length == found.max_sentence_length else None,
        )
    console.print(table)


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


def load_with_latents(name: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A model that has sentence latents, in float32, and its tokenizer.

    Raises:
        ValueError: If it is a model of another kind.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    from hf_sllm.inspection.latents import check_model

    config = AutoConfig.from_pretrained(name)
    check_model(config.model_type)
    auto_class = AutoModelForCausalLM if config.model_type == "sllm" else AutoModel
    model = auto_class.from_pretrained(name, config=config, dtype=torch.float32)
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    return model, AutoTokenizer.from_pretrained(name)


def load_sllm(name: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """An SLLM and its tokenizer.

    Raises:
        ValueError: If it is a model of another kind.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(name)
    if config.model_type != "sllm":
        raise ValueError(
            f"{name} is a {config.model_type!r} model, and this command writes with an SLLM: wrap it and train "
            "it with `hf-sllm train`."
        )
    return AutoModelForCausalLM.from_pretrained(name, config=config).eval(), AutoTokenizer.from_pretrained(name)


def embedded_checkpoint() -> str:
    """Where the checkpoint that comes with the package lies.

    Raises:
        ValueError: If this installation has none.
    """
    folder = files("hf_sllm") / "checkpoints" / "sllm-stories"
    if not (folder / "config.json").is_file():
        raise ValueError("this installation has no embedded checkpoint: give one by `--model`.")
    return str(folder)


@contextmanager
def told_plainly() -> Iterator[None]:
    """Turns the errors that a user can cause into a message and an exit status."""
    # A config's own checks raise this, with the ValueError inside.
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, StrictDataclassError) as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


if __name__ == "__main__":
    app()
