"""The lens: its last line is what the model writes, and its others are of the layers before."""

import pytest
import torch
from models import tiny_backbone
from test_latent_prediction import DOCUMENTS, model, tokenizer  # noqa: F401  fixtures
from typer.testing import CliRunner

from hf_sllm import SllmForCausalLM
from hf_sllm.cli import app
from hf_sllm.inspection import sentence_lens

TEXT = DOCUMENTS[3]["text"]


@pytest.fixture(scope="module")
def linear(tokenizer):  # noqa: F811
    backbone = tiny_backbone(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, pad_token_id=2)
    made = SllmForCausalLM.from_backbone(
        backbone, tokenizer, encoder_layers=1, decoder_layers=1, max_sentence_length=16
    ).eval()
    for linear in (made.model.latent_output, made.model.sentence_decoder.latent_prefix):
        linear.weight.data.normal_(std=0.5)  # what the backbone predicts matters
    return made


@pytest.fixture(params=["linear", "flow"])
def either(request, linear, model):  # noqa: F811
    return linear if request.param == "linear" else model


def test_the_last_layer_says_what_the_model_writes(either, tokenizer):  # noqa: F811
    found = sentence_lens(either, tokenizer, TEXT)
    assert [place.true for place in found] == [*(f"{part}." for part in TEXT.rstrip(".").split(". ")[1:]), None]
    assert {len(place.written) for place in found} == {1 + either.config.text_config.num_hidden_layers}
    for number in (1, 3, len(found)):
        ids = torch.tensor([tokenizer(". ".join(TEXT.split(". ")[:number]).rstrip(".") + ".").input_ids])
        if tokenizer.bos_token_id is not None and ids[0, 0] != tokenizer.bos_token_id:
            ids = torch.cat([torch.tensor([[tokenizer.bos_token_id]]), ids], 1)
        text = either.generate(ids, max_sentences=1, do_sample=False)[0, ids.shape[1] :]
        assert found[number - 1].written[-1] == tokenizer.decode(text, skip_special_tokens=True).strip()


def test_alone_it_is_what_the_latents_say(linear, tokenizer):  # noqa: F811
    (*_, last) = sentence_lens(linear, tokenizer, TEXT, alone=True)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(TEXT).input_ids]])
    latents, _ = linear.encode_sentences(ids)
    (expected,) = linear.decode_latents(linear.predict_next_latents(latents)[0, -1:])
    assert last.written[-1] == tokenizer.decode(expected, skip_special_tokens=True).strip()


def test_inner_layers_are_read_on_the_scale_of_the_last(linear, tokenizer):  # noqa: F811
    by_norm = [sentence_lens(linear, tokenizer, TEXT, final_norm=final_norm) for final_norm in (True, False)]
    inner, last = ([[place.written[part] for place in found] for found in by_norm] for part in (slice(-1), -1))
    assert inner[0] != inner[1] and last[0] == last[1]


def test_what_has_no_sentences_is_refused(linear, tokenizer):  # noqa: F811
    with pytest.raises(ValueError, match="`text` has no whole sentence"):
        sentence_lens(linear, tokenizer, "The goat")
    with pytest.raises(ValueError, match="a 'llama' model, whose backbone reads no sentences"):
        sentence_lens(tiny_backbone(), tokenizer, TEXT)


def test_the_command_shows_a_table_for_each_sentence(linear, tokenizer, tmp_path):  # noqa: F811
    linear.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    done = CliRunner().invoke(app, ["lens", str(tmp_path), TEXT])
    assert done.exit_code == 0, done.output
    assert done.output.count("before any layer") == 5 and "… the sentence to come" in done.output
