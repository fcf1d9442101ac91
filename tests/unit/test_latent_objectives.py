"""The contrast between a sentence's prediction and the other sentences of the batch."""

import math

import pytest
import torch
from models import BOUNDARIES, random_ids, tiny_sllm

from hf_sllm.modeling.latent_objectives import contrastive_loss, words_of_sentences

END = BOUNDARIES[0]


def layout_of(token_ids):
    mask = torch.ones_like(token_ids, dtype=torch.bool)
    return tiny_sllm().model.segmenter.layout(token_ids, mask)


def sentences(*words):
    """One row of sentences of three tokens each, and its layout."""
    token_ids = torch.tensor([[token for word in words for token in (word, word + 1, END)]])
    return token_ids.flatten(), layout_of(token_ids)


def cost(predicted, latents, words, temperature=0.1):
    """Per token."""
    token_ids, layout = sentences(*words)
    return contrastive_loss(predicted, latents, layout, token_ids, temperature) / len(token_ids)


def test_equal_latents_cannot_be_told_apart():
    latents = torch.randn(1, 2, 8).expand(5, -1, -1)
    assert cost(latents.flatten(1), latents, range(20, 30, 2)).item() == pytest.approx(math.log(5), abs=1e-4)


def test_orthogonal_ones_can_but_for_the_temperature():
    latents = torch.eye(8)[:, None]
    expected = math.log(1 + 7 * math.exp(-10))
    assert cost(latents.flatten(1), latents, range(20, 36, 2)).item() == pytest.approx(expected, abs=1e-5)
    shuffled = latents.roll(1, 0)
    assert cost(shuffled.flatten(1), latents, range(20, 36, 2)).item() == pytest.approx(10 + expected, abs=1e-4)


def test_sentences_of_the_same_words_are_no_mistake():
    words = (20, 22, 20, 24)
    token_ids, layout = sentences(*words)
    names = words_of_sentences(layout, token_ids)
    assert [[bool(a == b) for b in names] for a in names] == [[a == b for b in words] for a in words]
    latents = torch.randn(1, 1, 8).expand(4, -1, -1)
    expected = (2 * math.log(3) + 2 * math.log(4)) / 4  # of the two that are alike, each is out of sight for the other
    assert cost(latents.flatten(1), latents, words).item() == pytest.approx(expected, abs=1e-4)


def test_order_of_words_makes_another_sentence():
    token_ids = torch.tensor([[20, 21, END, 21, 20, END]])
    one, other = words_of_sentences(layout_of(token_ids), token_ids.flatten())
    assert one != other


def test_gradients_flow_into_predictions_alone():
    predicted, latents = torch.randn(3, 8, requires_grad=True), torch.randn(3, 2, 4, requires_grad=True)
    cost(predicted, latents, (20, 22, 24)).backward()
    assert latents.grad is None and predicted.grad.abs().sum() > 0


def test_the_model_learns_to_tell_its_sentences_from_others():
    torch.manual_seed(0)
    model, token_ids = tiny_sllm(contrastive_weight=1.0).train(), random_ids(2, 40)
    optimizer, costs = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(30):
        outputs = model(token_ids, labels=token_ids)
        costs.append(outputs.losses["contrastive"].item())
        outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert costs[-1] < 0.5 * costs[0]
    assert "contrastive" not in model.eval()(token_ids, labels=token_ids).losses


def test_a_text_without_a_closed_sentence_costs_nothing():
    model, token_ids = tiny_sllm(contrastive_weight=1.0).train(), torch.full((1, 3), 20)
    assert model(token_ids, labels=token_ids).losses["contrastive"] == 0
