"""Commands that find, measure and show features of sentences."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .common import app, load_with_latents, told_plainly

group = typer.Typer(help="Features of sentences: sparse autoencoders of a model's latents.", no_args_is_help=True)
app.add_typer(group, name="sae")

Model = Annotated[str, typer.Argument(help="Folder of an SLLM or a sentence VAE, or its name on the Hub.")]
Data = Annotated[str, typer.Option(help="Documents, as `hf-sllm data` writes them: their even ones, or all.")]
Limit = Annotated[int, typer.Option(help="How many sentences.", min=2)]


@group.command()
def train(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option(help="Folder for the autoencoder, in SAELens's format.")],
    site: Annotated[str, typer.Option(help="latents or predicted_latents.")] = "predicted_latents",
    activation: Annotated[str, typer.Option(help="relu, jumprelu, topk, batchtopk, abstopk or afa.")] = "topk",
    features: Annotated[int, typer.Option(help="How many.", min=1)] = 64,
    k: Annotated[int | None, typer.Option(help="Features per sentence, for those that count them.")] = None,
    normalize: Annotated[str, typer.Option(help="none, scale or whiten.")] = "whiten",
    steps: Annotated[int, typer.Option(help="Batches of 256 vectors to learn from.", min=1)] = 2000,
    limit: Limit = 6000,
    seed: Annotated[int, typer.Option(help="Of the first directions and of the order.")] = 0,
) -> None:
    """Fit a sparse autoencoder on every second document, and measure it on the others."""
    with told_plainly():
        from hf_sllm.data import load_documents
        from hf_sllm.interpretability import train_sae

        loaded, tokenizer = load_with_latents(model)
        k = 4 if k is None and activation in ("topk", "batchtopk", "abstopk") else k
        found, control, losses = train_sae(
            loaded, tokenizer, load_documents(data), output, site, steps, limit, seed,
            features=features, activation=activation, k=k, normalize=normalize,
        )  # fmt: skip
        table = Table("on the other documents", "trained", "untrained")
        for name, title in NAMES.items():
            table.add_row(title, f"{getattr(found, name):.3f}", f"{getattr(control, name):.3f}")
        if losses:
            table.add_row("loss recovered inside the model", *(f"{loss.share:.3f}" for loss in losses))
            table.add_row("nats per token with it", *(f"{loss.written:.4f}" for loss in losses))
            for name in ("clean", "mean", "another"):
                table.add_row(f"nats per token, {LATENTS[name]}", f"{getattr(losses[0], name):.4f}", "")
        console = Console()
        console.print(table)
        if features > 20 * found.effective_dimension:
            console.print(
                f"{features} features are many for vectors of {found.effective_dimension:.1f} effective dimensions: "
                "they will be parts of a few directions. Fewer features, or normalize=whiten, tell more."
            )


NAMES = {
    "l0": "features per sentence",
    "fvu": "variance unexplained",
    "dead": "features that never fire",
    "dense": "features that fire in over a tenth",
    "effective_dimension": "effective dimension",
}
LATENTS = {"clean": "the model's latents", "mean": "their mean", "another": "those of another sentence"}


@group.command()
def show(
    sae: Annotated[Path, typer.Argument(help="Folder of an autoencoder.")],
    model: Annotated[str, typer.Option(help="The model that it was fitted on.")],
    data: Data,
    output: Annotated[Path, typer.Option(help="The HTML file; features.jsonl is written beside it.")],
    limit: Limit = 6000,
) -> None:
    """Explain the features in words, score the explanations, and write one page to look at."""
    with told_plainly():
        from hf_sllm.data import load_documents
        from hf_sllm.interpretability import show_sae

        scores = show_sae(sae, *load_with_latents(model), load_documents(data), output, limit)
        own, rotated = (sum(getattr(one, name) for one in scores) / len(scores) for name in ("own", "rotated"))
        better = sum(one.own - one.rotated >= 0.15 for one in scores)
        typer.echo(
            f"{len(scores)} explanations: {own:.3f} of sentences told right on average, {rotated:.3f} with another "
            f"feature's explanation; {better} are better than that by 0.15 or more. {output}"
        )
