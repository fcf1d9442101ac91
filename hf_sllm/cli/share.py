"""Commands that share a model."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .common import app, told_plainly


@app.command()
def card(
    model: Annotated[str, typer.Argument(help="Folder of an SLLM or a sentence VAE, or its name on the Hub.")],
    output: Annotated[Path, typer.Option(help="The file to write.")],
    evaluation: Annotated[
        Path | None, typer.Option(help="The JSON of `hf-sllm eval --output`; by default that beside the model.")
    ] = None,
    about: Annotated[Path | None, typer.Option(help="A YAML file of what no file tells: data, licences, use.")] = None,
    repo: Annotated[str | None, typer.Option(help="Its name on the Hub, if it is to lie there with its code.")] = None,
) -> None:
    """Write a model card from what was measured."""
    with told_plainly():
        from hf_sllm.hub import load_about, make_card

        text = make_card(
            model, evaluation, None if about is None else load_about(about), name=repo, is_on_hub=repo is not None
        )
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")


@app.command()
def push(
    model: Annotated[Path, typer.Argument(help="Folder of an SLLM or a sentence VAE.")],
    repo: Annotated[str, typer.Argument(help="Its name on the Hub: owner/name.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go and what stays.")] = False,
    private: Annotated[bool | None, typer.Option(help="If the repository is made: for its owner only.")] = None,
    revision: Annotated[str | None, typer.Option(help="The branch; made if there is none.")] = None,
    overwrite_card: Annotated[
        bool, typer.Option("--overwrite-card", help="Even a card on the Hub that was written by hand.")
    ] = False,
) -> None:
    """Upload weights, code, tokenizer, card and results to the Hub, in one commit."""
    with told_plainly():
        from transformers.utils import logging

        from hf_sllm.hub import plan
        from hf_sllm.hub import push as run

        logging.disable_progress_bar()
        planned = plan(model, repo)
        if not dry_run:
            done = run(model, repo, private=private, revision=revision, overwrite_card=overwrite_card)
    for title, sizes in (("goes" if dry_run else "went", planned.sizes), ("stays", planned.stays)):
        table = Table(title=f"{title}: {len(sizes)}, {sum(sizes.values()):,} bytes", title_justify="left")
        table.add_column("")
        table.add_column("bytes", justify="right")
        for name, size in sizes.items():
            table.add_row(escape(name), f"{size:,}")
        Console().print(table)
    if not dry_run:
        Console().print(done.commit_url, highlight=False, soft_wrap=True)
