"""What a model knows of what was said: the words that follow from it are found, and so is how far back it was said."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_sllm.data import load_documents
from hf_sllm.data.casts import CastSettings, write_casts
from hf_sllm.embedded import embedded_checkpoint
from hf_sllm.evaluation import DocumentScores, score_documents
from hf_sllm.evaluation.facts import fact_scores


def scores(sizes: list[int], nats: list[float]) -> DocumentScores:
    """Tokens of so many bytes, each with another id."""
    size = torch.tensor(sizes)
    return DocumentScores(0, int(size.sum()), torch.arange(len(sizes)), torch.tensor(nats).double(), size)


def test_a_word_costs_what_its_tokens_do_and_is_known_if_it_is_likelier_than_all_others():
    # Tokens of bytes 0-4, 4-7, 7-8, 8-12; the words are bytes 5 to 7, and 8 to 12.
    document = {"facts": [[0, 2, 5, 7], [0, 2, 8, 12]]}
    (group,) = fact_scores([scores([4, 3, 1, 4], [9.0, 0.5, 9.0, 2.0])], [document])
    assert (group.nearest, group.farthest, group.words) == (1, 3, 2)
    assert group.nats == pytest.approx(1.25)
    assert group.known == 0.5 and 0.5 < math.log(2) < 2.0


def test_a_word_of_several_tokens_costs_their_sum():
    (group,) = fact_scores([scores([4, 3, 1, 4], [9.0, 0.5, 0.25, 9.0])], [{"facts": [[0, 20, 4, 8]]}])
    assert (group.nearest, group.farthest, group.nats) == (16, 63, 0.75)


def test_the_distance_is_to_where_the_word_was_last_said():
    one = scores([4, 4, 4], [1.0, 1.0, 1.0])
    same = DocumentScores(0, 12, torch.tensor([7, 7, 7]), one.nats, one.token_bytes)
    facts = [[0, 20, 0, 4], [0, 22, 4, 8], [0, 90, 8, 12]]
    for given, expected in ((same, [(1, 1), (16, 1), (64, 1)]), (one, [(16, 2), (64, 1)])):
        found = fact_scores([given], [{"facts": facts}])
        assert [(group.nearest, group.words) for group in found] == expected


def test_every_fact_of_casts_is_scored_once(tmp_path):
    write_casts(tmp_path, 3, 5, CastSettings(cast=2, words=8, sentences=6, distance=3))
    documents = load_documents(tmp_path / "casts.valid.jsonl.gz")
    tokenizer = AutoTokenizer.from_pretrained(embedded_checkpoint())
    model = AutoModelForCausalLM.from_pretrained(embedded_checkpoint(), dtype=torch.float32)
    groups = fact_scores(score_documents(model, tokenizer, documents, progress=False), documents)
    assert sum(group.words for group in groups) == sum(len(row["facts"]) for row in documents)
    assert all(0 < group.nats < math.inf for group in groups)
