"""What all commands share: the app, how errors are told, and which models they read."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

import hf_sllm

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

app = typer.Typer(
    help="A sentence level for any Hugging Face causal language model.", no_args_is_help=True, add_completion=False
)
errors = Console(stderr=True)


def show_version(wanted: bool) -> None:
    """Prints which version is installed, and ends."""
    if wanted:
        typer.echo(f"hf-sllm {hf_sllm.__version__}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """What stands before a command."""


def load_with_latents(name: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A model that has sentence latents, in float32, and its tokenizer.

    Raises:
        ValueError: If it is a model of another kind.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    from hf_sllm.inspection.run import check_model

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


@contextmanager
def told_plainly() -> Iterator[None]:
    """Within it a command does its work: the models are registered, and the errors that a user can cause become a
    message and an exit status."""
    # A config's own checks raise this, with the ValueError inside.
    from huggingface_hub.errors import StrictDataclassError

    try:
        hf_sllm.register()
        yield
    except (ValueError, TypeError, OSError, ImportError, StrictDataclassError) as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
