"""Documents cut into pieces that a model can score as wholes, and a sample of documents that is spread over all."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

# A paragraph, a line, a word with the space after it, or a character: the longest that fits is kept whole.
UNITS = (re.compile(r".*?\n\s*\n\s*|.+$", re.DOTALL), re.compile(r".*\n|.+$"), re.compile(r"\S*\s|\S+$"))


def cut_documents(documents: Dataset, max_bytes: int) -> Dataset:
    """Cuts documents where paragraphs, or else lines or words, end. Nothing is added or dropped.

    Args:
        documents: With a column `text`.
        max_bytes: The longest piece, in UTF-8.

    Raises:
        ValueError: If not even a character may fit.
    """
    if max_bytes < 4:
        raise ValueError(f"`max_bytes` is {max_bytes}: a character can have 4.")

    def pieces_of(batch: dict[str, list]) -> dict[str, list]:
        return {"text": [piece for text in batch["text"] for piece in pieces(text, max_bytes)]}

    return documents.map(
        pieces_of, batched=True, remove_columns=documents.column_names, desc="Cutting documents into pieces"
    )


def pieces(text: str, max_bytes: int, level: int = 0) -> list[str]:
    """Pieces of a text of at most `max_bytes`, as long as whole units allow."""
    if len(text.encode()) <= max_bytes:
        return [text]
    units = UNITS[level].findall(text) if level < len(UNITS) else list(text)
    found: list[str] = []
    size = 0
    for unit in units:
        for part in pieces(unit, max_bytes, level + 1):
            length = len(part.encode())
            if found and size + length <= max_bytes:
                found[-1] += part
                size += length
            else:
                found.append(part)
                size = length
    return found


def spread(documents: Dataset, limit: int | None) -> Dataset:
    """So many of the documents, at even distances."""
    if limit is None or limit >= len(documents):
        return documents
    return documents.select([index * len(documents) // limit for index in range(limit)])
