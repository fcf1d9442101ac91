"""No position sees a later token."""

import pytest
import torch
from models import BACKBONES, OPTIONS, option_model, random_ids, tiny_sllm

ALL_OPTIONS = [*OPTIONS, "paper"]


def influence(model, token_ids, **kwargs) -> torch.Tensor:
    """`(length, length)`: by how much the logits at t (row) change with the embedding of token s (column)."""
    embeds = model.get_input_embeddings()(token_ids).detach().requires_grad_()
    logits = model(input_ids=token_ids, inputs_embeds=embeds, **kwargs).logits[0]
    # A random direction in the vocabulary: no cancellation can hide a dependence.
    direction = torch.randn(logits.shape[-1], generator=torch.Generator().manual_seed(0))
    rows = [torch.autograd.grad(row @ direction, embeds, retain_graph=True)[0][0].abs().sum(-1) for row in logits]
    return torch.stack(rows)


def assert_causal(jacobian: torch.Tensor) -> None:
    assert jacobian.triu(1).abs().max() == 0
    assert (jacobian.diagonal() > 0).all()  # what may be seen is seen


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("option", ALL_OPTIONS)
def test_no_position_sees_a_later_token(option, packed):
    model = option_model(option)
    model.model.sentence_encoder.packed = model.model.sentence_decoder.packed = packed
    assert_causal(influence(model, random_ids(1, 24)))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_no_backbone_sees_a_later_token(backbone, implementation):
    model = tiny_sllm(backbone)
    model.set_attn_implementation(implementation)
    assert_causal(influence(model, random_ids(1, 24)))


@pytest.mark.parametrize("option", ["default", "sentence_alone", "paper"])
def test_no_position_sees_a_later_token_of_explicit_sentences(option):
    sentence_ids = torch.arange(24)[None] // 5
    assert_causal(influence(option_model(option), random_ids(1, 24), sentence_ids=sentence_ids))


@pytest.mark.parametrize("option", ALL_OPTIONS)
def test_no_position_sees_a_later_token_through_the_cache(option):
    """A chunk is read after a cached prefix: changing a token of the chunk changes nothing before it."""
    model, token_ids = option_model(option), random_ids(1, 24)
    changed = token_ids.clone()
    changed[:, 17] = 5 + (token_ids[:, 17] == 5).long()
    logits = []
    for ids in (token_ids, changed):
        with torch.no_grad():
            cache = model(ids[:, :10], use_cache=True).past_key_values
            logits.append(model(ids[:, 10:], past_key_values=cache, use_cache=True).logits)
    assert torch.equal(logits[0][:, :7], logits[1][:, :7])
    assert not torch.allclose(logits[0][:, 7:], logits[1][:, 7:])


@pytest.mark.parametrize("option", ["default", "sentence_alone"])
def test_earlier_sentences_are_seen(option):
    """Through the backbone: the first token still matters when its sentence and the decoder's context are over."""
    model = option_model(option)
    model.config.decoder_context_length = min(3, model.config.decoder_context_length)
    assert influence(model, random_ids(1, 40))[-1, 0] > 0


def test_rows_of_a_batch_do_not_see_each_other():
    model, token_ids = tiny_sllm(), random_ids(2, 16)
    embeds = model.get_input_embeddings()(token_ids).detach().requires_grad_()
    for packed in (False, True):
        model.model.sentence_encoder.packed = model.model.sentence_decoder.packed = packed
        logits = model(input_ids=token_ids, inputs_embeds=embeds).logits
        for row, other in ((0, 1), (1, 0)):
            gradient = torch.autograd.grad(logits[row].square().sum(), embeds, retain_graph=True)[0]
            assert gradient[row].abs().max() > 0 and gradient[other].abs().max() == 0
