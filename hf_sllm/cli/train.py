"""Commands that train."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .common import app, told_plainly


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that comes with the package.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    output_dir: Annotated[Path | None, typer.Option(help="Where to save; by default what the recipe says.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe to change: `sllm_config.num_latents=2`."),
    ] = None,
) -> None:
    """Train an SLLM by a recipe, and measure it beside its baseline."""
    with told_plainly():
        from hf_sllm.training import load_recipe
        from hf_sllm.training import train as run
        from hf_sllm.training.recipe import load_changes

        run(load_recipe(recipe, output_dir, load_changes(changes or [])), resume=resume)


@app.command()
def ablate(
    file: Annotated[str, typer.Argument(help="A YAML file of variants, or the name of one of the package's.")],
    output_dir: Annotated[Path, typer.Option(help="Where to save; what is there already is not trained again.")],
) -> None:
    """Train variants of a recipe, one change at a time, and measure them beside one baseline."""
    with told_plainly():
        from hf_sllm.training.ablate import ablate as run

        run(file, output_dir)


@app.command()
def recovery(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that comes with the package.")],
    seed: Annotated[list[int], typer.Option(help="A seed of the trainings; may be repeated.")] = [0],  # noqa: B006
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is there.")] = False,
    output_dir: Annotated[Path | None, typer.Option(help="Where to save; by default what the recipe says.")] = None,
    detached: Annotated[
        bool, typer.Option("--detached", help="Also train an SLLM with a memory through which no gradient flows.")
    ] = False,
) -> None:
    """Train an SLLM and two token-level models: of what a window loses, how much does the sentence level recover?"""
    with told_plainly():
        from hf_sllm.training import load_recipe
        from hf_sllm.training.recovery import recovery as run

        run(load_recipe(recipe, output_dir), seed, resume, detached=detached)


@app.command()
def frontier(
    file: Annotated[str, typer.Argument(help="A YAML file of models, or the name of one of the package's.")],
    output_dir: Annotated[Path, typer.Option(help="Where to save.")],
    seed: Annotated[list[int], typer.Option(help="A seed of the trainings; may be repeated.")] = [0],  # noqa: B006
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is there.")] = False,
) -> None:
    """Train token-level models and SLLMs of several shapes: which ones does no other beat in bits, speed and cache?"""
    with told_plainly():
        from hf_sllm.training.frontier import frontier as run

        run(file, output_dir, seed, resume)


@app.command("layers")
def choose_layers(
    backbone: Annotated[str, typer.Argument(help="Path or name of a causal language model.")],
    data: Annotated[list[str], typer.Option(help="A file of documents, or a dataset on the Hub; may be repeated.")],
    keep: Annotated[int, typer.Option(min=1, help="Go down to so many layers.")] = 2,
    texts: Annotated[int, typer.Option(min=1, help="How many pieces of text to read, spread over the documents.")] = 6,
    length: Annotated[int, typer.Option(min=2, help="Tokens of each.")] = 64,
    split: Annotated[str, typer.Option(help="The split of a dataset on the Hub.")] = "train",
) -> None:
    """Find the layers that a decoder best begins with: leave out one after the other, always the least missed."""
    with told_plainly():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from hf_sllm.data import document_ids, load_documents, spread
        from hf_sllm.training.choose_layers import choose_layers as choose

        model = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32)
        documents = spread(load_documents(data, split), 4 * texts)
        rows = [
            row[:length]
            for row in document_ids([row["text"] for row in documents], AutoTokenizer.from_pretrained(backbone))
        ]
        rows = [row for row in rows if len(row) == length][:texts]
        if not rows:
            raise ValueError(f"no document of {data} has {length} tokens: lower `--length`.")
        choices = choose(model, torch.tensor(rows), keep)
    table = Table(title=f"{backbone}, {len(rows)} x {length} tokens")
    table.add_column("layers", justify="right")
    table.add_column("nats per token", justify="right")
    table.add_column("which: `decoder_layers` of a recipe")
    for choice in choices:
        table.add_row(str(len(choice.layers)), f"{choice.nats:.3f}", str(list(choice.layers)))
    Console().print(table)
