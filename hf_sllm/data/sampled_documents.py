"""What made-up documents have in common: the facts in them, the splits, and the files that hold them."""

import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from rich.console import Console
from rich.progress import track

SPLITS = ("train", "valid")


class Fact(NamedTuple):
    """A word that follows from an earlier sentence.

    Attributes:
        stated: The sentence that states it, counted from 0.
        used: The sentence that says it again.
        start, end: Where in the text it stands there, in bytes of UTF-8.
    """

    stated: int
    used: int
    start: int
    end: int


class Document(Protocol):
    """A document that is drawn."""

    @property
    def row(self) -> dict[str, Any]:
        """What the line of a file holds."""


class Totals(Protocol):
    """What a file holds in all."""

    def add(self, document: Any) -> None:
        """Counts one more document."""


SomeTotals = TypeVar("SomeTotals", bound=Totals)


def write_splits(
    folder: str | Path,
    name: str,
    drawn: Mapping[str, tuple[Iterable[Document], int]],
    make_totals: Callable[[], SomeTotals],
    progress: bool,
) -> dict[str, SomeTotals]:
    """Writes `NAME.SPLIT.jsonl.gz` for each split, a line for each document; returns what is in each.

    A file is there only when it is whole. It holds no time: the same documents make the same bytes.

    Args:
        folder: Where to; it is made if need be.
        drawn: The documents of each split, and how many they are.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for split, (documents, count) in drawn.items():
        title, console, totals = f"Writing {name}, {split}", Console(stderr=True), make_totals()
        file = folder / f"{name}.{split}.jsonl.gz"
        partial = file.with_name(file.name + ".partial")
        with partial.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
            for document in track(documents, title, count, console=console, disable=not progress, transient=True):
                packed.write(json.dumps(document.row).encode() + b"\n")
                totals.add(document)
        partial.replace(file)
        written[split] = totals
    return written


def check_integer(field: str, value: int, least: int) -> None:
    """Refuses what is no whole number of at least so much."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"`{field}` is {value!r}: it must be a whole number of at least {least}.")


def check_split(split: str) -> None:
    """Refuses what is no split."""
    if split not in SPLITS:
        raise ValueError(f"`split` is {split!r}: it must be one of {', '.join(SPLITS)}.")
