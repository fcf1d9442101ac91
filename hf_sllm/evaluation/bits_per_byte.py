"""Bits per byte: the negative log2-likelihood of texts over their UTF-8 bytes.

A text is scored after one start token, its first token and its end included, so the figure is the length of a lossless
code for it.
"""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .likelihood import DocumentScores, score_documents

# The lengths of sentences, in tokens, from which each group of them begins.
LENGTHS = (1, 5, 9, 17, 33, 65)


@dataclass(frozen=True)
class BitsPerByte:
    """What was measured.

    Attributes:
        bits: Total negative log2-likelihood.
        bytes: Total UTF-8 bytes of the texts.
        tokens: How many tokens were scored, ends of text included.
        seconds: Wall time.
    """

    bits: float
    bytes: int
    tokens: int
    seconds: float

    @property
    def bits_per_byte(self) -> float:
        return self.bits / self.bytes

    @property
    def token_perplexity(self) -> float:
        """Compares only models with the same tokenizer. Infinite where it is beyond what a float holds."""
        nats = self.bits * math.log(2) / self.tokens
        return math.exp(nats) if nats < 700 else math.inf


@dataclass(frozen=True)
class LengthBits:
    """What the sentences of some lengths cost.

    Attributes:
        shortest, longest: The lengths, in tokens; `None` is without end.
        sentences, tokens: How many there are.
        bits_per_token: Negative log2-likelihood.
        bits_per_byte: Over the bytes that the tokens stand for; `None` if there are none, or they are not known.
    """

    shortest: int
    longest: int | None
    sentences: int
    tokens: int
    bits_per_token: float
    bits_per_byte: float | None


def bits_per_byte(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Mapping[str, Any]],
    batch_size: int = 16,
    progress: bool = True,
    *,
    window: int | None = None,
    stride: int | None = None,
) -> BitsPerByte:
    """Scores documents, each as a whole, or in windows that slide if it is longer than the model reads at once.

    Args:
        model: Any causal language model; load it in float32 for a figure that counts.
        tokenizer: The model's own.
        documents: Rows with a `text`: a `datasets.Dataset`, or a list of dicts.
        batch_size: Documents, or windows of long ones, at a time.
        progress: Whether to show a progress bar, on standard error.
        window, stride: See `score_documents`.

    Raises:
        ValueError: If there is nothing to score, and as `score_documents` does.
    """
    scores = score_documents(
        model, tokenizer, documents, window=window, stride=stride, batch_size=batch_size, progress=progress
    )
    return total_bits(scores)


def total_bits(scores: Iterable[DocumentScores]) -> BitsPerByte:
    """The bits per byte of documents that are, or while they are asked for become, scored.

    Raises:
        ValueError: If they have no text.
    """
    begun = time.monotonic()
    nats, num_bytes, tokens = 0.0, 0, 0
    for document in scores:
        nats += document.nats.sum().item()
        num_bytes += document.bytes
        tokens += len(document.nats)
    if num_bytes == 0:
        raise ValueError("`documents` hold no text: there is nothing to score.")
    return BitsPerByte(nats / math.log(2), num_bytes, tokens, time.monotonic() - begun)


def by_sentence_length(scores: Iterable[DocumentScores]) -> tuple[LengthBits, ...]:
    """What sentences of each length cost, the shorter ones first; lengths that do not occur are left out.

    An end of text is a sentence of one token and no bytes.

    Raises:
        ValueError: If the documents were scored without a rule that says where sentences end.
    """
    edges = torch.tensor(LENGTHS)
    # Sentences, tokens, nats and bytes of each group.
    totals = torch.zeros(4, len(LENGTHS), dtype=torch.float64)
    for document in scores:
        if document.sentence is None:
            raise ValueError("`scores` were made without a `rule`: without it there are no sentences.")
        token_bytes = document.token_bytes
        token_bytes = torch.full_like(document.nats, torch.nan) if token_bytes is None else token_bytes.double()
        length = document.sentence.bincount()
        group = torch.bucketize(length, edges, right=True) - 1
        for total, values in (
            (totals[0], torch.ones_like(group)),
            (totals[1], length),
            (totals[2], document.sentence.bincount(document.nats)),
            (totals[3], document.sentence.bincount(token_bytes)),
        ):
            total.index_add_(0, group, values.double())
    rows = zip(LENGTHS, [*(first - 1 for first in LENGTHS[1:]), None], totals.T.tolist(), strict=True)
    return tuple(
        LengthBits(
            shortest,
            longest,
            int(sentences),
            int(tokens),
            nats / math.log(2) / tokens,
            nats / math.log(2) / num_bytes if num_bytes > 0 else None,
        )
        for shortest, longest, (sentences, tokens, nats, num_bytes) in rows
        if sentences
    )


def entropy_floor(documents: Iterable[Mapping[str, Any]], column: str = "bits") -> float | None:
    """The bits per byte below which no model can score on average: known where the documents were drawn from a known
    distribution, and tell in `bits` what that gave each. `None` where they do not.

    Args:
        documents: Rows with a `text`.
        column: `"bits"`, or `"bits_forgetful"` for a writer who knows the distribution and forgets what was said.
    """
    rows = list(documents)
    if not rows or any(row.get(column) is None for row in rows):
        return None
    return sum(row[column] for row in rows) / sum(len(row["text"].encode()) for row in rows)


__all__ = ["BitsPerByte", "LengthBits", "bits_per_byte", "by_sentence_length", "entropy_floor", "total_bits"]
