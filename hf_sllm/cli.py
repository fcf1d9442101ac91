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

app = typer.Typer(
    help="A sentence level for any Hugging Face causal language model.", no_args_is_help=True, add_completion=False
)
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
def evaluate(
    model: Annotated[str, typer.Argument(help="Path or name of any causal language model.")],
    data: Annotated[str, typer.Argument(help="A file of documents, or a dataset on the Hub.")],
    split: Annotated[str, typer.Option(help="The split of a dataset on the Hub.")] = "validation",
    text_column: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many documents only.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Documents at a time.")] = 16,
) -> None:
    """Measure bits per byte, beside the floor if the data tells it."""
    with told_plainly():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from hf_sllm.data import load_documents
        from hf_sllm.evaluation import bits_per_byte, entropy_floor

        documents = load_documents(data, split, text_column, limit)
        tokenizer = AutoTokenizer.from_pretrained(model)
        language_model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        language_model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
        found = bits_per_byte(language_model, tokenizer, documents, batch_size)
        floor = entropy_floor(documents)
    table = Table(title=f"{data}, {len(documents)} documents")
    for name in ("", "bits per byte", "tokens", "bytes", "seconds"):
        table.add_column(name, justify="right" if name else "left")
    if floor is not None:
        table.add_row("floor", f"{floor:.4f}")
    table.add_row(model, f"{found.bits_per_byte:.4f}", f"{found.tokens:,}", f"{found.bytes:,}", f"{found.seconds:.1f}")
    Console().print(table)


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
