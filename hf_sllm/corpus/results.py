"""What a run gives back: what is there of the corpus now."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Corpus:
    """What is there of a corpus, whichever processes wrote it.

    Attributes:
        rows: In all parts.
        errors: How many of these failed.
        parts: How many files.
        complete: Whether no part is missing.
    """

    rows: int
    errors: int
    parts: int
    complete: bool
