"""Features get names, and the names get scores (Paulo et al. 2024, arXiv 2410.13928).

An explanation is made from sentences on which a feature fires and some on which it does not, by a chat model or,
without any, by the terms in which the two differ. It is then scored on sentences of other documents, always beside the
explanation of another feature: what scores no better than that says nothing.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from .chat import describe, detect
from .terms import TermWeights, choose_terms, sentence_terms

# Takes instructions and a message, and replies: any chat model.
Chat = Callable[[list[str]], str]

# A side of a feature that has less than this share of its activations shows noise.
LEAST_SIDE = 0.05


class Sentences(Protocol):
    """What is to be known of `N` vectors: `Vectors` has it."""

    text: Sequence[str]
    document: torch.Tensor  # (N,)
    sentence: torch.Tensor  # (N,)


@dataclass(frozen=True)
class Explanation:
    """What makes a feature fire, in words.

    Attributes:
        feature: Its number.
        sign: 1, or -1 for the negative side of a feature that has two.
        text: The explanation.
        terms: Of which a sentence has one or more if the feature fires; empty if a chat model explained.
    """

    feature: int
    sign: int
    text: str
    terms: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExplanationScore:
    """How well an explanation tells the sentences on which its feature fires from others.

    Attributes:
        feature, sign: Of the explanation.
        own: The score: .5 is chance, 1 the most.
        rotated: The score of another feature's explanation on the same sentences.
        hard: The score against those sentences that are most like the ones on which the feature fires.
        density: Share of all sentences on which it fires.
    """

    feature: int
    sign: int
    own: float
    rotated: float
    hard: float
    density: float


def explain(
    activations: torch.Tensor,
    vectors: Sentences,
    explainer: str | Chat = "terms",
    examples: int = 200,
    tenths: bool = True,
    least: int = 20,
    seed: int = 0,
) -> list[Explanation]:
    """Explains each feature, and each side of one that has two.

    Args:
        activations: `(N, m)` features of the vectors.
        vectors: The sentences.
        explainer: `"terms"`, or a chat model: a function from instructions and a message to a reply.
        examples: On how many sentences where the feature fires an explanation rests; a chat model is shown 40 at most.
        tenths: Whether they come from all tenths of the activations. Otherwise they are the strongest, which makes
            explanations narrow.
        least: A feature that fires on fewer sentences is left out.
        seed: Of the draws.

    Raises:
        ValueError: If there are not as many sentences as activations, or the explainer is unknown.
    """
    check(activations, vectors)
    if isinstance(explainer, str) and explainer != "terms":
        raise ValueError(f'`explainer` is {explainer!r}: it is "terms" or a function.')
    draw = random.Random(seed)
    terms = terms_of(vectors)
    found = []
    for feature, sign in sides(activations):
        values = side(activations, feature, sign)
        firing = int((values > 0).sum())
        if firing < least or firing == len(values):
            continue
        fires = from_tenths(values, examples, draw) if tenths else values.topk(min(examples, firing)).indices.tolist()
        others = sampled((values == 0).nonzero()[:, 0].tolist(), 2 * len(fires), draw)
        if callable(explainer):
            shown = sampled(fires, 40, draw)
            text = describe(explainer, [vectors.text[i] for i in shown], [float(values[i]) for i in shown])
            found.append(Explanation(feature, sign, text))
        else:
            chosen = choose_terms([terms[i] for i in fires], [terms[i] for i in others])
            found.append(Explanation(feature, sign, ", ".join(chosen), chosen))
    return found


def score(
    explanations: Sequence[Explanation],
    activations: torch.Tensor,
    vectors: Sentences,
    by: str = "detection",
    scorer: Chat | None = None,
    examples: int = 100,
    least: int = 10,
    seed: int = 0,
) -> list[ExplanationScore]:
    """Scores explanations on sentences that they were not made from: see that these are of other documents.

    Args:
        explanations: Two or more.
        activations: `(N, m)` features of the vectors.
        vectors: The sentences.
        by: `"detection"`, the balanced accuracy of telling from the explanation on which sentences the feature fires;
            or `"embedding"`, the AUROC of the tf-idf cosine of explanation and sentence.
        scorer: A chat model that detects. By default the terms of the explanation do.
        examples: How many sentences on which the feature fires, of all tenths, and as many others.
        least: A feature that fires on fewer sentences is left out.
        seed: Of the draws.

    Raises:
        ValueError: If there are not as many sentences as activations, `by` is unknown, or an explanation without terms
            has no scorer.
    """
    check(activations, vectors)
    if by not in ("detection", "embedding"):
        raise ValueError(f'`by` is {by!r}: it is "detection" or "embedding".')
    draw = random.Random(seed)
    terms = terms_of(vectors)
    weights = TermWeights(terms)

    def judge(explanation: Explanation, chosen: list[int]) -> list[float]:
        if by == "embedding":
            profile = dict.fromkeys(explanation.terms or sentence_terms(explanation.text), 1.0)
            return [weights.cosine(terms[i], profile) for i in chosen]
        if scorer is not None:
            return detect(scorer, explanation.text, [vectors.text[i] for i in chosen])
        if not explanation.terms and explanation.text:
            raise ValueError(f"explanation {explanation.text!r} has no terms: give a `scorer` that reads it.")
        return [float(not terms[i].isdisjoint(explanation.terms)) for i in chosen]

    def tested(explanation: Explanation, fires: list[int], others: list[int]) -> float:
        order = fires + others
        draw.shuffle(order)
        judged = dict(zip(order, judge(explanation, order), strict=True))
        return auroc([judged[i] for i in fires], [judged[i] for i in others])

    sets = []
    for one in explanations:
        values = side(activations, one.feature, one.sign)
        if least <= int((values > 0).sum()) < len(values):
            silent = (values == 0).nonzero()[:, 0].tolist()
            fires = from_tenths(values, examples, draw)
            profile = Counter(term for i in fires for term in terms[i])
            alike = {i: weights.cosine(terms[i], profile) for i in silent}
            hard = sorted(silent, key=lambda i, alike=alike: -alike[i])[: len(fires)]  # type: ignore[misc]
            sets.append((one, fires, sampled(silent, len(fires), draw), hard, float((values > 0).double().mean())))
    if len(sets) < 2:
        raise ValueError(f"{len(sets)} of the explanations can be scored: two or more are needed, to rotate them.")
    return [
        ExplanationScore(
            one.feature,
            one.sign,
            own=tested(one, fires, others),
            rotated=tested(sets[index - 1][0], fires, others),
            hard=tested(one, fires, hard),
            density=density,
        )
        for index, (one, fires, others, hard, density) in enumerate(sets)
    ]


def check(activations: torch.Tensor, vectors: Sentences) -> None:
    """Raises a ValueError if there are not as many sentences as activations."""
    if len(activations) != len(vectors.text):
        raise ValueError(f"`activations` are of {len(activations)} vectors, and there are {len(vectors.text)} texts.")


def sides(activations: torch.Tensor) -> list[tuple[int, int]]:
    """Features of `(N, m)` with the signs that they have: both where each has more than a twentieth of the firing."""
    above, below = (activations > 0).sum(0).tolist(), (activations < 0).sum(0).tolist()
    return [
        (feature, sign)
        for feature, counts in enumerate(zip(above, below, strict=True))
        for sign, count in zip((1, -1), counts, strict=True)
        if count > LEAST_SIDE * sum(counts)
    ]


def side(activations: torch.Tensor, feature: int, sign: int) -> torch.Tensor:
    """Activations `(N,)` of a side of a feature, 0 where it does not fire."""
    return (sign * activations[:, feature]).clamp_min(0)


def from_tenths(values: torch.Tensor, count: int, draw: random.Random) -> list[int]:
    """Indices of up to `count` positive values of `(N,)`, as many from each tenth of them, the largest tenth first."""
    order = values.argsort(descending=True, stable=True)[: int((values > 0).sum())]
    return [i for part in order.tensor_split(10) for i in sampled(part.tolist(), max(count // 10, 1), draw)]


def sampled(items: list[int], count: int, draw: random.Random) -> list[int]:
    """Up to `count` of them."""
    return draw.sample(items, min(count, len(items)))


def terms_of(vectors: Sentences) -> list[frozenset[str]]:
    """The terms of each sentence."""
    return [sentence_terms(text, int(at)) for text, at in zip(vectors.text, vectors.sentence, strict=True)]


def auroc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """The chance that a positive has the higher value, ties by half; of values 0 and 1 it is balanced accuracy."""
    above, below = torch.tensor(positives).double(), torch.tensor(negatives).double().sort().values
    left, right = torch.searchsorted(below, above), torch.searchsorted(below, above, right=True)
    return float((left + right).double().mean() / (2 * len(below)))


__all__ = ["Chat", "Explanation", "ExplanationScore", "explain", "score"]
