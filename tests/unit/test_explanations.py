"""Explanations of features: made of planted concepts, and scored on other sentences."""

import json
import random
from dataclasses import dataclass, replace

import pytest
import torch

from hf_sllm.interpretability.explanations import explain, score
from hf_sllm.interpretability.run import show_features
from hf_sllm.interpretability.terms import sentence_terms

CONCEPTS = [[f"c{concept}w{word}" for word in range(8)] for concept in range(8)] + [[f"r{w}" for w in range(5)], ["?"]]


@dataclass
class Planted:
    text: list[str]
    document: torch.Tensor
    sentence: torch.Tensor
    activations: torch.Tensor


def planted(count: int, seed: int) -> Planted:
    """Sentences of filler words with ten concepts, and features that fire on these, with few mistakes."""
    draw = random.Random(seed)
    texts, rows = [], []
    for _ in range(count):
        words = [f"filler{draw.randrange(300)}" for _ in range(draw.randint(6, 14))]
        end, row = ".", []
        for concept in CONCEPTS:
            on = draw.random() < 0.12
            if on and concept == ["?"]:
                end = "?"
            elif on:
                words.insert(draw.randint(1, len(words) - 1), draw.choice(concept))
            fires = draw.random() < (0.97 if on else 0.003)
            row.append(draw.uniform(0.2, 3) if fires else 0.0)
        texts.append(" ".join(words) + end)
        rows.append(row)
    return Planted(texts, torch.arange(count) // 10, torch.arange(count) % 10, torch.tensor(rows))


def mean(scores, name="own"):
    return sum(getattr(one, name) for one in scores) / len(scores)


@pytest.fixture(scope="module")
def seen():
    return planted(4000, seed=0)


@pytest.fixture(scope="module")
def heldout():
    return planted(2000, seed=1)


@pytest.fixture(scope="module")
def explanations(seen):
    return explain(seen.activations, seen)


def test_explanations_of_planted_concepts_are_found_and_others_score_as_chance(explanations, heldout):
    scores = score(explanations, heldout.activations, heldout)
    assert len(scores) == 10 and min(one.own for one in scores) >= 0.95
    assert abs(mean(scores, "rotated") - 0.5) <= 0.05


def test_activations_of_other_sentences_are_not_explained(seen, heldout):
    def permuted(given, seed):
        return given.activations[torch.randperm(len(given.text), generator=torch.Generator().manual_seed(seed))]

    explanations = explain(permuted(seen, 0), seen)
    assert mean(score(explanations, permuted(heldout, 1), heldout)) <= 0.56


def test_examples_of_all_tenths_explain_more_than_the_strongest(explanations, seen, heldout):
    strongest = explain(seen.activations, seen, examples=20, tenths=False)
    tenths, top = (mean(score(one, heldout.activations, heldout)) for one in (explanations, strongest))
    assert tenths >= top + 0.1


def test_embedding_scores_and_hard_sentences_tell_planted_concepts_too(explanations, heldout):
    scores = score(explanations, heldout.activations, heldout, by="embedding")
    assert mean(scores) >= 0.9 and abs(mean(scores, "rotated") - 0.5) <= 0.05
    assert mean(scores, "hard") >= 0.9


def test_both_sides_of_a_signed_feature_are_explained(seen):
    signed = seen.activations[:, :1] - seen.activations[:, 1:2]
    found = {one.sign: one.terms for one in explain(signed, seen)}
    assert {term[1:3] for term in found[1]} == {"c0"} and {term[1:3] for term in found[-1]} == {"c1"}


def test_a_chat_model_explains_and_judges(seen, heldout):
    """Here one that knows the concepts by heart; it is asked for five sentences at a time."""

    def chat(messages):
        _, message = messages
        if message.startswith("Description: "):
            name, *lines = message.removeprefix("Description: ").splitlines()
            assert 1 <= len(lines) <= 5
            return str([int(name in line) for line in lines])
        counts = [(sum(f"c{concept}w" in line for line in message.splitlines()), concept) for concept in range(8)]
        return f"They are alike.\n**Explanation:** c{max(counts)[1]}w"

    eight, others = seen.activations[:, :8], heldout.activations[:, :8]
    explanations = explain(eight, seen, explainer=chat)
    assert [one.text for one in explanations] == [f"c{concept}w" for concept in range(8)]
    scores = score(explanations, others, heldout, scorer=chat)
    assert mean(scores) >= 0.95 and abs(mean(scores, "rotated") - 0.5) <= 0.05
    mute = score(explanations, others, heldout, scorer=lambda messages: "I cannot say.")
    assert mean(mute) == 0.5
    with pytest.raises(ValueError, match="scorer"):
        score(explanations, others, heldout)


def test_what_does_not_fit_is_refused(seen, explanations):
    with pytest.raises(ValueError, match="activations"):
        explain(seen.activations[1:], seen)
    with pytest.raises(ValueError, match="explainer"):
        explain(seen.activations, seen, explainer="words")
    with pytest.raises(ValueError, match="by"):
        score(explanations, seen.activations, seen, by="eye")
    with pytest.raises(ValueError, match="two or more"):
        score(explanations[:1], seen.activations, seen)
    with pytest.raises(ValueError, match="two or more"):
        score([replace(one, sign=-1) for one in explanations], seen.activations, seen)


def test_terms_are_what_a_reader_would_say():
    assert sentence_terms('"No," she said. ', 1) == {
        '"no"', '"she"', '"said"', '"no she"', '"she said"', 'first word "no"', 'last word "said"', "0 to 4 words",
        "a quote", "sentence 2 of its text",
    }  # fmt: skip
    assert {"ends with a question mark", "a question mark", "5 to 8 words"} <= sentence_terms("Is it a good day?")
    assert sentence_terms("") == {"0 to 4 words"}


def test_a_page_shows_what_is_scored_on_other_documents_than_those_explained(seen, tmp_path):
    scores = show_features(seen.activations, seen, torch.eye(10), tmp_path / "page.html", {"model": "planted"})
    assert mean(scores) >= 0.95 and abs(mean(scores, "rotated") - 0.5) <= 0.05
    records = [json.loads(line) for line in (tmp_path / "features.jsonl").read_text().splitlines()]
    assert {one["feature"]: one["score"] for one in records} == {one.feature: round(one.own, 3) for one in scores}
