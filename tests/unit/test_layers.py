import copy

import pytest
import torch
from models import BACKBONES, tiny_backbone
from transformers import AutoModelForCausalLM

from hf_sllm.modeling.backbone_layers import copy_layers
from hf_sllm.training.choose_layers import choose_layers

TOKENS = torch.randint(11, 61, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", BACKBONES)
def test_a_choice_is_as_good_as_a_model_of_these_layers_alone(name):
    backbone = tiny_backbone(name)
    before = backbone(TOKENS, labels=TOKENS).loss
    every, two, one = choose_layers(backbone, TOKENS, progress=False)

    assert every.layers == (0, 1, 2) and every.nats == pytest.approx(before.item(), abs=1e-5)
    assert set(one.layers) < set(two.layers)
    config = copy.deepcopy(backbone.config)
    config.num_hidden_layers = 1
    small = AutoModelForCausalLM.from_config(config).eval()
    small.load_state_dict(backbone.state_dict(), strict=False)
    copy_layers(backbone.base_model, small.base_model, list(one.layers))
    assert one.nats == pytest.approx(small(TOKENS, labels=TOKENS).loss.item(), abs=1e-5)
    assert torch.equal(backbone(TOKENS, labels=TOKENS).loss, before)


def test_what_is_left_out_is_missed_least():
    backbone = tiny_backbone("llama")
    _, two, _ = choose_layers(backbone, TOKENS, progress=False)
    for layers in ([0, 1], [0, 2], [1, 2]):
        config = copy.deepcopy(backbone.config)
        config.num_hidden_layers = 2
        small = AutoModelForCausalLM.from_config(config).eval()
        small.load_state_dict(backbone.state_dict(), strict=False)
        copy_layers(backbone.base_model, small.base_model, layers)
        assert two.nats <= small(TOKENS, labels=TOKENS).loss.item() + 1e-5


def test_a_number_of_layers_that_there_cannot_be_is_refused():
    with pytest.raises(ValueError, match="`keep` is 4: the backbone has 3 layers"):
        choose_layers(tiny_backbone("llama"), TOKENS, keep=4, progress=False)
