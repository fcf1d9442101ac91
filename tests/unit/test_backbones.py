"""What is taken from a backbone, and what is shared with it."""

import pytest
import torch
from models import BACKBONES, BOUNDARIES, random_ids, tiny_backbone, tiny_sllm
from transformers import AutoModelForCausalLM

from hf_sllm.modeling import SllmForCausalLM


@pytest.mark.parametrize("name", BACKBONES)
def test_embeddings_head_and_layers_come_from_the_backbone(name):
    backbone = tiny_backbone(name)
    expected = {key: value.clone() for key, value in backbone.base_model.state_dict().items()}
    head = backbone.get_output_embeddings().weight.clone()
    model = SllmForCausalLM.from_backbone(
        backbone, boundary_token_ids=BOUNDARIES, max_sentence_length=9, encoder_layers=2, decoder_layers=[0, 2]
    )
    assert torch.equal(model.get_output_embeddings().weight, head)
    assert torch.equal(model.get_input_embeddings().weight, backbone.get_input_embeddings().weight)
    for key, value in model.model.language_model.state_dict().items():
        assert torch.equal(value, expected[key])
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == backbone.config.tie_word_embeddings
    # Each layer of encoder and decoder is the one it was chosen to be.
    for part, layers in ((model.model.sentence_encoder, [0, 1]), (model.model.sentence_decoder, [0, 2])):
        own = part.model.state_dict()
        assert len(own) > 10
        for key, value in own.items():
            words = key.split(".")
            at = next((i for i, word in enumerate(words) if word.isdigit()), None)
            if at is not None:
                words[at] = str(layers[int(words[at])])
            assert torch.equal(value, expected[".".join(words)])


def test_a_sentence_level_model_trains_all_its_parts():
    model, token_ids = tiny_sllm().train(), random_ids(2, 30)
    model(token_ids, labels=token_ids).loss.backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert idle == set()


def test_the_backbone_model_goes_on_by_itself():
    """Its weights are shared, not changed, and its own forward pass is as before."""
    backbone, token_ids = tiny_backbone(), random_ids(1, 10)
    before = backbone(token_ids).logits
    model = SllmForCausalLM.from_backbone(backbone, boundary_token_ids=BOUNDARIES, max_sentence_length=9)
    assert torch.equal(backbone(token_ids).logits, before)
    assert model.model.language_model is backbone.model


def test_what_is_no_causal_language_model_is_refused():
    with pytest.raises(TypeError, match="LlamaModel"):
        SllmForCausalLM.from_backbone(tiny_backbone().model, boundary_token_ids=BOUNDARIES)
    with pytest.raises(TypeError, match="tokenizer"):
        SllmForCausalLM.from_backbone(tiny_backbone())


def test_the_real_small_model_can_be_wrapped_by_its_path(shared):
    path = shared / "models" / "stories260K"
    model = SllmForCausalLM.from_backbone(path, decoder_layers=3).eval()
    token_ids = random_ids(1, 40)
    assert model(token_ids, labels=token_ids).loss.isfinite()
    backbone = AutoModelForCausalLM.from_pretrained(path)
    assert torch.equal(model.model.language_model.norm.weight, backbone.model.norm.weight)
