"""What a run found: each figure beside the floor and the baseline, as a table and as JSON."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass
class Result:
    """One line.

    Attributes:
        name: What was measured.
        bits_per_byte: On the validation documents.
        tokens_seen: Tokens trained on in this run.
        minutes: Wall time of the training.
        parameters: How many it has, tied ones once.
        seed: Of the training.
    """

    name: str
    bits_per_byte: float
    tokens_seen: int | None = None
    minutes: float | None = None
    parameters: int | None = None
    seed: int | None = None


def write_results(results: list[Result], path: Path) -> None:
    """Writes the lines as a list of objects."""
    path.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n", encoding="utf-8")


def print_results(results: list[Result], title: str, console: Console) -> None:
    """Prints the lines as a table."""
    table = Table(title=title)
    table.add_column("")
    for name in ("bits per byte", "tokens seen", "minutes", "parameters", "seed"):
        table.add_column(name, justify="right")
    for result in results:
        table.add_row(
            result.name,
            f"{result.bits_per_byte:.4f}",
            "" if result.tokens_seen is None else f"{result.tokens_seen:,}",
            "" if result.minutes is None else f"{result.minutes:.1f}",
            "" if result.parameters is None else f"{result.parameters:,}",
            "" if result.seed is None else str(result.seed),
        )
    console.print(table)
