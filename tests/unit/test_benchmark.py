"""Both sides of a benchmark do the same work: the same tokens, in sentences of the length asked for."""

import pytest
import torch
from typer.testing import CliRunner

from hf_sllm.benchmark import make_pair, measure_training, random_text
from hf_sllm.cli import app


def test_the_random_text_has_sentences_of_one_length():
    backbone, sllm = make_pair("tiny", 8, decoder_layers=1)
    token_ids = random_text(3, 64, 8, backbone.config.vocab_size)
    layout = sllm.model.segmenter.layout(token_ids, torch.ones_like(token_ids).bool())
    assert torch.bincount(layout.token_sentence).tolist() == [8] * 24


def test_both_sides_are_trained_on_the_text(monkeypatch):
    import hf_sllm.benchmark.training as benchmark

    trained = []
    plain = benchmark.training_step

    def spy(model, optimizer, token_ids, bf16):
        before = next(model.parameters()).clone()
        plain(model, optimizer, token_ids, bf16)
        assert not torch.equal(before, next(model.parameters()))
        trained.append((model.config.model_type, token_ids.shape))

    monkeypatch.setattr(benchmark, "training_step", spy)
    speed = measure_training(*make_pair("tiny", 8, decoder_layers=1), random_text(2, 32, 8, 300), 2, progress=False)
    assert trained == [("llama", (2, 32)), ("sllm", (2, 32))] * 3
    assert speed.ratio > 0 and speed.sllm > 0 and speed.backbone > 0


def test_the_command_prints_both_sides():
    command = ["bench", "training", "tiny", "--steps", "1", "--batch-size", "1", "--length", "32"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "backbone" in result.stdout and "SLLM, decoder of" in result.stdout


def test_unknown_shapes_are_refused():
    with pytest.raises(ValueError, match="`shapes` is 'huge': neither one of smollm2-135m, tiny"):
        make_pair("huge", 8)
