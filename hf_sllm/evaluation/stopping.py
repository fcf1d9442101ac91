"""Whether a model knows where sentences end."""

from collections.abc import Iterable
from dataclasses import dataclass

from .likelihood import DocumentScores


@dataclass(frozen=True)
class Stopping:
    """How well closed sentences are foretold.

    Attributes:
        threshold: A close is predicted from this probability on.
        precision: Share of the predicted closes that are ones; `None` if none is predicted.
        recall: Share of the closes that are predicted; `None` if there is none.
        f1: The harmonic mean of the two; `None` if neither exists.
        tokens: How many were judged.
        closes: How many of these close their sentence.
        forced: How many were left out, since any token would have closed the sentence.
    """

    threshold: float
    precision: float | None
    recall: float | None
    f1: float | None
    tokens: int
    closes: int
    forced: int


def stopping(scores: Iterable[DocumentScores], threshold: float = 0.5) -> Stopping:
    """Compares, token by token, whether a model expects the sentence to close with whether it does.

    A model is asked before it reads the token, given all tokens before it. It predicts a close if the tokens that
    would close the sentence there, full stops and the end of text among others, have a probability of `threshold` or
    more together. So this works for any causal language model, and has nothing to do with an SLLM's stop head. Where
    to stop is often open: no model reaches 1.

    Where a sentence reaches the maximum length with the token, any token closes it and there is nothing to predict:
    these tokens are left out.

    Args:
        scores: Of `score_documents`, with a rule.
        threshold: A probability.

    Raises:
        ValueError: If the threshold is no probability, or the documents were scored without a rule that says where
            sentences end.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"`threshold` is {threshold}: it must be above 0 and at most 1.")
    predicted = closes = both = tokens = left_out = 0
    for document in scores:
        if document.close_probability is None or document.closes is None or document.forced is None:
            raise ValueError("`scores` were made without a `rule`: without it there are no sentences.")
        judged = ~document.forced
        is_predicted = (document.close_probability >= threshold) & judged
        is_close = document.closes & judged
        predicted += int(is_predicted.sum())
        closes += int(is_close.sum())
        both += int((is_predicted & is_close).sum())
        tokens += int(judged.sum())
        left_out += int(document.forced.sum())
    return Stopping(
        threshold=threshold,
        precision=both / predicted if predicted else None,
        recall=both / closes if closes else None,
        f1=2 * both / (predicted + closes) if predicted + closes else None,
        tokens=tokens,
        closes=closes,
        forced=left_out,
    )


__all__ = ["Stopping", "stopping"]
