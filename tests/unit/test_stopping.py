"""Stops are judged where there is something to foretell."""

import pytest
import torch

from hf_sllm.evaluation import DocumentScores, stopping


def scores_of(probability, closes, forced=None) -> DocumentScores:
    size = len(closes)
    return DocumentScores(
        index=0,
        bytes=size,
        token_ids=torch.zeros(size, dtype=torch.long),
        nats=torch.zeros(size, dtype=torch.float64),
        close_probability=torch.tensor(probability),
        closes=torch.tensor(closes, dtype=torch.bool),
        forced=torch.tensor(forced or [0] * size, dtype=torch.bool),
        sentence=torch.zeros(size, dtype=torch.long),
    )


def test_precision_and_recall_are_counted_over_all_documents():
    scores = [scores_of([0.9, 0.5, 0.4, 0.1], [1, 0, 1, 0]), scores_of([0.6, 0.2], [1, 1])]
    found = stopping(scores)
    assert (found.precision, found.recall) == (2 / 3, 2 / 4)
    assert found.f1 == pytest.approx(2 / (3 / 2 + 4 / 2))
    assert (found.tokens, found.closes, found.forced) == (6, 4, 0)


def test_the_threshold_decides():
    scores = [scores_of([0.9, 0.5, 0.4, 0.1], [1, 0, 1, 0])]
    assert (stopping(scores, 0.8).precision, stopping(scores, 0.8).recall) == (1, 1 / 2)
    assert (stopping(scores, 0.05).precision, stopping(scores, 0.05).recall) == (2 / 4, 1)


def test_forced_closes_are_left_out():
    found = stopping([scores_of([0.9, 1.0, 0.1], [1, 1, 0], forced=[0, 1, 0])])
    assert (found.precision, found.recall, found.tokens, found.closes, found.forced) == (1, 1, 2, 1, 1)
    # Surely is not forced.
    assert stopping([scores_of([1.0, 1.0], [1, 0])]).precision == 1 / 2


def test_what_cannot_be_told_is_none():
    found = stopping([scores_of([0.1, 0.1], [0, 0])])
    assert (found.precision, found.recall, found.f1) == (None, None, None)
    assert stopping([scores_of([0.1], [1])]).f1 == 0


@pytest.mark.parametrize("threshold", [0, 1.5])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    with pytest.raises(ValueError, match=f"`threshold` is {threshold}"):
        stopping([], threshold)


def test_scores_without_sentences_are_refused():
    without = DocumentScores(0, 1, torch.zeros(1, dtype=torch.long), torch.zeros(1))
    with pytest.raises(ValueError, match="without a `rule`"):
        stopping([without])
