"""Futures: each is what its latents say, and the picture shows them all."""

import pytest
import torch
from models import tiny_backbone
from typer.testing import CliRunner

from hf_sllm import SllmForCausalLM
from hf_sllm.cli import app
from hf_sllm.data import train_tokenizer
from hf_sllm.inspection import plot_futures, sentence_futures

TEXT, FOLLOWING = "The goat saw a hat. The key saw a moon. The pear saw a rose.", "The ship saw a tree."


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([f"{TEXT} {FOLLOWING}"], 300)


def made(tokenizer, **fields) -> SllmForCausalLM:
    backbone = tiny_backbone(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, pad_token_id=2)
    return SllmForCausalLM.from_backbone(
        backbone, tokenizer, encoder_layers=1, decoder_layers=1, max_sentence_length=16, **fields
    ).eval()


@pytest.fixture(scope="module")
def flow(tokenizer):
    return made(tokenizer, latent_predictor={"type": "flow", "num_layers": 1, "steps": 2})


def test_each_future_is_what_its_latents_say(flow, tokenizer):
    found = sentence_futures(flow, tokenizer, TEXT, count=5, following=FOLLOWING, seed=3)
    assert found.said == ("The goat saw a hat.", "The key saw a moon.", "The pear saw a rose.")
    assert found.true == FOLLOWING and len(found.written) == len(found.latents) == 5
    assert sum(times for _, times in found.counts) == 5
    shape = (flow.config.num_latents, flow.config.latent_size)
    for latents, text in zip(found.latents, found.written, strict=True):
        (ids,) = flow.decode_latents(latents.view(1, *shape))
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    assert len(found.latents.unique(dim=0)) == 5
    (again, *_) = sentence_futures(flow, tokenizer, TEXT, count=1, seed=4).latents
    torch.testing.assert_close(again, found.latents[1])


def test_a_map_has_one_future(tokenizer):
    assert len(sentence_futures(made(tokenizer), tokenizer, TEXT).written) == 1


def test_the_command_prints_and_draws(flow, tokenizer, tmp_path):
    flow.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    picture = tmp_path / "futures.svg"
    options = ["--count", "3", "--following", FOLLOWING, "--output", str(picture)]
    result = CliRunner().invoke(app, ["futures", str(tmp_path), TEXT, *options])
    assert result.exit_code == 0, result.output
    assert f"what does come: {FOLLOWING}" in result.output and "after: The pear saw a rose." in result.output
    assert picture.stat().st_size > 5_000


def test_one_future_after_one_sentence_is_drawn_too(tokenizer, tmp_path):
    plot_futures(sentence_futures(made(tokenizer), tokenizer, "The goat saw a hat."), tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    "given, message",
    [
        ({"text": "The goat"}, "`text` has no whole sentence"),
        ({"count": 0}, "`count` is 0: it must be at least 1"),
        ({"following": "The ship"}, "`following` is 'The ship': it must be one whole sentence"),
        ({"following": "The ship saw. A tree."}, "it must be one whole sentence"),
    ],
)
def test_what_is_missing_is_named(flow, tokenizer, given, message):
    with pytest.raises(ValueError, match=message):
        sentence_futures(flow, tokenizer, **{"text": TEXT, **given})
