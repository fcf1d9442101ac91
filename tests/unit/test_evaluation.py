"""Bits per byte is what adding up by hand gives."""

import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_sllm import SllmForCausalLM
from hf_sllm.data import train_tokenizer
from hf_sllm.evaluation import bits_per_byte, entropy_floor

DOCUMENTS = [
    {"text": "A goat ate the hat.", "bits": 30.0},
    {"text": "Où est la clé? Here it is! Thank you.", "bits": 50.0},
    {"text": "No.", "bits": 4.0},
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([row["text"] for row in DOCUMENTS], 270)


@pytest.fixture(scope="module")
def backbone(tokenizer):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.5,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def sllm(backbone, tokenizer):
    return SllmForCausalLM.from_backbone(
        backbone, tokenizer, encoder_layers=1, decoder_layers=1, max_sentence_length=16
    ).eval()


def bits_by_hand(model, tokenizer) -> float:
    """One document and one token at a time."""
    bits = 0.0
    for row in DOCUMENTS:
        ids = [tokenizer.bos_token_id, *tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]
        for position in range(1, len(ids)):
            with torch.no_grad():
                logits = model(torch.tensor([ids[:position]])).logits[0, -1]
            bits -= logits.double().log_softmax(-1)[ids[position]].item() / math.log(2)
    return bits


@pytest.mark.parametrize("kind", ["backbone", "sllm"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_bits_are_those_of_every_token_after_the_start_and_of_the_end(kind, batch_size, tokenizer, request):
    model = request.getfixturevalue(kind)
    found = bits_per_byte(model, tokenizer, DOCUMENTS, batch_size, progress=False)
    assert found.bits == pytest.approx(bits_by_hand(model, tokenizer), rel=1e-5)
    assert found.bytes == sum(len(row["text"].encode()) for row in DOCUMENTS)
    assert found.tokens == sum(len(tokenizer(row["text"])["input_ids"]) + 1 for row in DOCUMENTS)
    assert found.bits_per_byte == found.bits / found.bytes


def test_a_surrounding_autocast_changes_nothing(backbone, tokenizer):
    plain = bits_per_byte(backbone, tokenizer, DOCUMENTS, progress=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bits_per_byte(backbone, tokenizer, DOCUMENTS, progress=False).bits == plain.bits


def test_a_model_in_training_is_scored_without_dropout_and_left_in_training(backbone, tokenizer):
    expected = bits_per_byte(backbone, tokenizer, DOCUMENTS, progress=False).bits
    backbone.train()
    assert bits_per_byte(backbone, tokenizer, DOCUMENTS, progress=False).bits == expected
    assert backbone.training
    backbone.eval()


def test_a_document_longer_than_the_model_is_refused_with_its_length(backbone, tokenizer):
    text = "x" * 70
    length = len(tokenizer(text)["input_ids"]) + 2
    with pytest.raises(ValueError, match=f"a document has {length} tokens, and the model reads at most 64"):
        bits_per_byte(backbone, tokenizer, [{"text": text}], progress=False)


def test_a_sentence_level_model_is_limited_by_sentences(sllm, tokenizer):
    assert bits_per_byte(sllm, tokenizer, [{"text": "xyz " * 40}], progress=False).tokens > 64
    with pytest.raises(ValueError, match="a document has 7[0-9] sentences, and the model reads at most 64"):
        bits_per_byte(sllm, tokenizer, [{"text": "x.\n" * 70}], progress=False)


def test_nothing_to_score_is_refused(backbone, tokenizer):
    with pytest.raises(ValueError, match="hold no text"):
        bits_per_byte(backbone, tokenizer, [{"text": ""}], progress=False)


def test_the_floor_is_the_information_over_the_bytes():
    assert entropy_floor(DOCUMENTS) == 84.0 / sum(len(row["text"].encode()) for row in DOCUMENTS)


def test_there_is_no_floor_where_the_data_tells_none():
    assert entropy_floor([{"text": "A."}]) is None
    assert entropy_floor([*DOCUMENTS, {"text": "A.", "bits": None}]) is None
