"""The lens: its last line is what the model writes, and its others are of the layers before."""

import pytest
import torch
from models import tiny_backbone
from typer.testing import CliRunner

from hf_sllm import SllmForCausalLM
from hf_sllm.cli import app
from hf_sllm.data import train_tokenizer
from hf_sllm.inspection import sentence_lens

TEXT = "The goat saw a hat. The key saw a moon. The pear saw a rose. The ship saw a tree. The wind saw a yak."


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT], 300)


def made(tokenizer, **fields) -> SllmForCausalLM:
    backbone = tiny_backbone(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, pad_token_id=2)
    model = SllmForCausalLM.from_backbone(
        backbone, tokenizer, encoder_layers=1, decoder_layers=1, max_sentence_length=16, **fields
    )
    for name, parameter in model.named_parameters():  # what the backbone predicts matters
        if name.endswith(("latent_output.weight", "latent_out.weight", "modulation.weight", "latent_prefix.weight")):
            parameter.data.normal_(std=0.5)
    return model.eval()


@pytest.fixture(scope="module")
def linear(tokenizer):
    return made(tokenizer)


@pytest.fixture(params=["linear", "flow"])
def either(request, linear, tokenizer):
    if request.param == "linear":
        return linear
    return made(tokenizer, latent_predictor={"type": "flow", "num_layers": 1, "steps": 2})


def test_the_last_layer_says_what_the_model_writes(either, tokenizer):
    found = sentence_lens(either, tokenizer, TEXT)
    assert [place.true for place in found] == [*(f"{part}." for part in TEXT.rstrip(".").split(". ")[1:]), None]
    assert {len(place.written) for place in found} == {1 + either.config.text_config.num_hidden_layers}
    for number in (1, 3, len(found)):
        ids = torch.tensor([tokenizer(". ".join(TEXT.split(". ")[:number]).rstrip(".") + ".").input_ids])
        if tokenizer.bos_token_id is not None and ids[0, 0] != tokenizer.bos_token_id:
            ids = torch.cat([torch.tensor([[tokenizer.bos_token_id]]), ids], 1)
        text = either.generate(ids, attention_mask=torch.ones_like(ids), max_sentences=1, do_sample=False)
        text = text[0, ids.shape[1] :]
        assert found[number - 1].written[-1] == tokenizer.decode(text, skip_special_tokens=True).strip()


def test_alone_it_is_what_the_latents_say(linear, tokenizer):
    (*_, last) = sentence_lens(linear, tokenizer, TEXT, alone=True)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(TEXT).input_ids]])
    latents, _ = linear.encode_sentences(ids)
    (expected,) = linear.decode_latents(linear.predict_next_latents(latents)[0, -1:])
    assert last.written[-1] == tokenizer.decode(expected, skip_special_tokens=True).strip()


def test_inner_layers_are_read_on_the_scale_of_the_last(linear, tokenizer):
    by_norm = [sentence_lens(linear, tokenizer, TEXT, final_norm=final_norm) for final_norm in (True, False)]
    inner, last = ([[place.written[part] for place in found] for found in by_norm] for part in (slice(-1), -1))
    assert inner[0] != inner[1] and last[0] == last[1]


def test_what_has_no_sentences_is_refused(linear, tokenizer):
    with pytest.raises(ValueError, match="`text` has no whole sentence"):
        sentence_lens(linear, tokenizer, "The goat")
    with pytest.raises(ValueError, match="a 'llama' model, whose backbone reads no sentences"):
        sentence_lens(tiny_backbone(), tokenizer, TEXT)


def test_the_command_shows_a_table_for_each_sentence(linear, tokenizer, tmp_path):
    linear.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    done = CliRunner().invoke(app, ["lens", str(tmp_path), TEXT])
    assert done.exit_code == 0, done.output
    assert done.output.count("before any layer") == 5 and "… the sentence to come" in done.output
