"""What a run found: each figure beside the floor and the baseline, as a table and as JSON."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


@dataclass
class Result:
    """One line; what was not measured is `None`.

    Attributes:
        name: What was measured.
        bits_per_byte: On the validation documents.
        ratio: Of its bits per byte to the trained baseline's.
        token_accuracy, next_token_accuracy, exact_sentences: See `Reconstruction`.
        tokens_seen: Tokens trained on.
        minutes: Wall time of the training.
        parameters: How many it has, tied ones once.
        seed: Of the training.
    """

    name: str
    bits_per_byte: float | None = None
    ratio: float | None = None
    token_accuracy: float | None = None
    next_token_accuracy: float | None = None
    exact_sentences: float | None = None
    tokens_seen: int | None = None
    minutes: float | None = None
    parameters: int | None = None
    seed: int | None = None


# Of each column: what stands above it, and how a figure is written.
COLUMNS = {
    "bits_per_byte": ("bits per byte", "{:.4f}"),
    "ratio": ("ratio", "{:.3f}"),
    "token_accuracy": ("tokens right", "{:.2%}"),
    "next_token_accuracy": ("next tokens right", "{:.2%}"),
    "exact_sentences": ("exact sentences", "{:.2%}"),
    "tokens_seen": ("tokens seen", "{:,}"),
    "minutes": ("minutes", "{:.1f}"),
    "parameters": ("parameters", "{:,}"),
    "seed": ("seed", "{}"),
}


def write_results(results: list[Result], path: Path) -> None:
    """Writes the lines as a list of objects."""
    path.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n", encoding="utf-8")


def print_results(results: list[Result], title: str, console: Console) -> None:
    """Prints the lines as a table, with the columns that any of them has."""
    columns = [name for name in COLUMNS if any(getattr(result, name) is not None for result in results)]
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("")
    for name in columns:
        table.add_column(COLUMNS[name][0], justify="right", overflow="fold")
    for result in results:
        values = {name: getattr(result, name) for name in columns}
        cells = ["" if value is None else COLUMNS[name][1].format(value) for name, value in values.items()]
        table.add_row(result.name, *cells)
    console.print(table)
