"""How well a model knows what was said before: the words that follow from an earlier sentence, by distance."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .likelihood import DocumentScores

# How many sentences back a fact was last said, from which each group begins.
DISTANCES = (1, 4, 16, 64)


@dataclass(frozen=True)
class FactScore:
    """What the words cost that follow from sentences so far back.

    Attributes:
        nearest, farthest: How many sentences back the word was last said; `None` is without end.
        words: How many there are.
        nats: Negative log-likelihood of a word. Who remembers pays nothing; who does not, the logarithm of how many
            words it could be.
        known: Share of the words that the model found more probable than all others together.
    """

    nearest: int
    farthest: int | None
    words: int
    nats: float
    known: float


def fact_scores(scores: Iterable[DocumentScores], documents: Iterable[Mapping[str, Any]]) -> tuple[FactScore, ...]:
    """What the facts of documents cost, the nearest ones first; distances that do not occur are left out.

    Args:
        scores: Of the documents, by a model with a fast tokenizer.
        documents: Rows with `facts`, as `hf_sllm.data.casts` writes them: the sentence that states each, the sentence
            that uses it, and where the word stands in the text, in bytes.
    """
    facts = {index: document["facts"] for index, document in enumerate(documents)}
    groups: list[list[float]] = [[] for _ in DISTANCES]
    for document in scores:
        size: Any = document.token_bytes
        ends = size.cumsum(0)
        said: dict[tuple[int, str], int] = {}
        for stated, used, start, end in facts[document.index]:
            # A token that begins before the word, as with the space before it, is part of it.
            inside = (ends > start) & (ends - size < end)
            word = (stated, str(document.token_ids[inside].tolist()))
            distance = used - said.get(word, stated)
            said[word] = used
            group = int(torch.bucketize(torch.tensor(distance), torch.tensor(DISTANCES), right=True)) - 1
            if group >= 0:  # said twice in one sentence, it follows from that one
                groups[group].append(document.nats[inside].sum().item())
    farthest = [*(first - 1 for first in DISTANCES[1:]), None]
    return tuple(
        FactScore(nearest, last, len(nats), sum(nats) / len(nats), sum(one < math.log(2) for one in nats) / len(nats))
        for nearest, last, nats in zip(DISTANCES, farthest, groups, strict=True)
        if nats
    )
