"""Each figure is what adding up by hand gives."""

import copy
import dataclasses
import math
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_sllm import SentenceVaeModel, SllmForCausalLM
from hf_sllm.data import document_ids, sentence_rule, train_tokenizer
from hf_sllm.evaluation import (
    BitsPerByte,
    DocumentScores,
    LengthBits,
    bits_per_byte,
    by_sentence_length,
    entropy_floor,
    reconstruction,
    score_documents,
    total_bits,
)
from hf_sllm.evaluation.reconstruction import _compare

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


@pytest.mark.parametrize("kind", ["backbone", "sllm"])
def test_a_document_longer_than_the_model_is_scored_in_windows(kind, tokenizer, request):
    model, documents = request.getfixturevalue(kind), [{"text": "xyz. " * 40}]
    for window, stride in ((None, None), (20, 5)):
        found = bits_per_byte(model, tokenizer, documents, progress=False, window=window, stride=stride)
        (scores,) = score_documents(model, tokenizer, documents, window=window, stride=stride, progress=False)
        assert found.tokens == len(tokenizer(documents[0]["text"])["input_ids"]) + 1 > 64
        assert found.bits * math.log(2) == pytest.approx(scores.nats.sum().item())


def test_perplexity_is_that_of_a_token(backbone, tokenizer):
    found = bits_per_byte(backbone, tokenizer, DOCUMENTS, progress=False)
    assert found.token_perplexity == pytest.approx(2 ** (found.bits / found.tokens))
    assert BitsPerByte(1e6, 1, 1, 0.0).token_perplexity == math.inf


def test_sentences_of_each_length_cost_together_what_the_texts_cost(backbone, tokenizer):
    scores = list(score_documents(backbone, tokenizer, DOCUMENTS, sentence_rule(tokenizer), progress=False))
    rows = by_sentence_length(scores)
    whole = total_bits(scores)
    assert sum(row.bits_per_token * row.tokens for row in rows) == pytest.approx(whole.bits)
    assert sum(row.tokens for row in rows) == whole.tokens
    lengths = torch.cat([document.sentence.bincount() for document in scores])
    for row in rows:
        chosen = (lengths >= row.shortest) & (lengths <= (row.longest or math.inf))
        assert (row.sentences, row.tokens) == (chosen.sum(), lengths[chosen].sum())
    assert len(rows) > 1


def test_the_bytes_of_sentences_of_a_length_are_their_own():
    """A sentence of two tokens and one of six."""
    document = DocumentScores(
        index=0,
        bytes=20,
        token_ids=torch.zeros(8, dtype=torch.long),
        nats=torch.tensor([1.0, 2.0, *[0.5] * 6], dtype=torch.float64) * math.log(2),
        token_bytes=torch.tensor([3, 5, *[2] * 6]),
        sentence=torch.tensor([0, 0, *[1] * 6]),
    )
    assert by_sentence_length([document]) == (
        LengthBits(1, 4, 1, 2, pytest.approx(1.5), pytest.approx(3 / 8)),
        LengthBits(5, 8, 1, 6, pytest.approx(0.5), pytest.approx(3 / 12)),
    )
    unknown = dataclasses.replace(document, token_bytes=None)
    assert [row.bits_per_byte for row in by_sentence_length([unknown])] == [None, None]
    with pytest.raises(ValueError, match="without a `rule`"):
        by_sentence_length([dataclasses.replace(document, sentence=None)])


def test_nothing_to_score_is_refused(backbone, tokenizer):
    with pytest.raises(ValueError, match="hold no text"):
        bits_per_byte(backbone, tokenizer, [{"text": ""}], progress=False)


def test_the_floor_is_the_information_over_the_bytes():
    assert entropy_floor(DOCUMENTS) == 84.0 / sum(len(row["text"].encode()) for row in DOCUMENTS)


def test_there_is_no_floor_where_the_data_tells_none():
    assert entropy_floor([{"text": "A."}]) is None
    assert entropy_floor([*DOCUMENTS, {"text": "A.", "bits": None}]) is None


@pytest.mark.parametrize("kind", ["vae", "sllm"])
def test_reconstruction_is_what_is_written_from_each_sentence_alone(kind, backbone, tokenizer):
    torch.manual_seed(4)
    backbone = copy.deepcopy(backbone)
    fields = {"encoder_layers": 1, "decoder_layers": 1, "max_sentence_length": 16}
    if kind == "vae":
        model = SentenceVaeModel.from_backbone(backbone, tokenizer, **fields).eval()
    else:
        # The context is not for what an SLLM writes back.
        fields |= {"reconstruction_weight": 1.0, "decoder_context_length": 4}
        model = SllmForCausalLM.from_backbone(backbone, tokenizer, **fields).eval()
    # Then about half of what is written ends at once, and some ends of text are right.
    model.lm_head.weight.data[tokenizer.eos_token_id].mul_(50)
    found = reconstruction(model, tokenizer, DOCUMENTS, batch_size=2, progress=False, compare_texts=True)

    given, written = [], []
    encode, decode = (model.encode, model.decode) if kind == "vae" else (model.encode_sentences, model.decode_latents)
    for ids in document_ids([row["text"] for row in DOCUMENTS], tokenizer):
        token_ids = torch.tensor([ids[1:]])
        layout = model.base_model.segmenter.layout(token_ids, torch.ones_like(token_ids).bool())
        for sentence in token_ids[0].split(layout.token_sentence.bincount().tolist()):
            with torch.no_grad():
                latents = encode(sentence[None])
                (back,) = decode(latents if kind == "vae" else latents[0][0])
            given.append(sentence.tolist())
            written.append(back.tolist())
    pairs = list(zip(given, written, strict=True))
    right = sum(a == b for sentence, back in pairs for a, b in zip(sentence, back, strict=False))
    assert (found.sentences, found.tokens) == (len(given), sum(map(len, given)))
    assert found.token_accuracy == pytest.approx(right / found.tokens) and right
    assert found.exact_sentences == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    for row in found.by_sentence_length:
        chosen = [(a, b) for a, b in pairs if row.shortest <= len(a) <= (row.longest or len(a))]
        right = sum(x == y for a, b in chosen for x, y in zip(a, b, strict=False))
        assert (row.sentences, row.tokens) == (len(chosen), sum(len(a) for a, _ in chosen))
        assert row.exact_sentences == pytest.approx(sum(a == b for a, b in chosen) / len(chosen))
        assert row.token_accuracy == pytest.approx(right / row.tokens)
    assert sum(row.sentences for row in found.by_sentence_length) == found.sentences
    sacrebleu = pytest.importorskip("sacrebleu")
    texts = [[tokenizer.decode(ids, skip_special_tokens=True) for ids in side] for side in (written, given)]
    assert found.chrf == sacrebleu.corpus_chrf(texts[0], [texts[1]]).score
    assert found.bleu == sacrebleu.corpus_bleu(texts[0], [texts[1]]).score


def test_texts_that_agree_score_100():
    pytest.importorskip("sacrebleu")
    texts = ["A goat ate the hat.", "Où est la clé?"]
    assert _compare(texts, texts) == (pytest.approx(100), pytest.approx(100))
    assert max(_compare(["x y z u v."], ["A goat ate the hat."])) < 20


def test_a_model_that_never_learned_to_reconstruct_is_refused(backbone, sllm, tokenizer):
    with pytest.raises(ValueError, match="`reconstruction_weight` of this SLLM is 0"):
        reconstruction(sllm, tokenizer, DOCUMENTS, progress=False)
    with pytest.raises(ValueError, match="`model` is a 'llama'"):
        reconstruction(backbone, tokenizer, DOCUMENTS, progress=False)


def test_comparing_texts_without_sacrebleu_says_what_to_install(backbone, tokenizer, monkeypatch):
    vae = SentenceVaeModel.from_backbone(backbone, tokenizer, encoder_layers=1, max_sentence_length=16)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ImportError, match=r'pip install "hf-sllm\[eval\]"'):
        reconstruction(vae, tokenizer, DOCUMENTS, progress=False, compare_texts=True)
    assert reconstruction(vae, tokenizer, DOCUMENTS, progress=False).chrf is None
