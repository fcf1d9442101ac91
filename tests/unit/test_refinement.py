"""Latents that are refined explain what was read, stay near what was predicted, and are written on from."""

import pytest
import torch
from models import BOUNDARIES, random_ids, tiny_sllm

from hf_sllm.inspection import refine_latents
from hf_sllm.inspection.scores import latents_replaced

END = BOUNDARIES[0]
MEAN = {"latent_predictor": {"type": "mse", "num_layers": 1}}


def text(open_tokens=3):
    """Three closed sentences and an open one."""
    token_ids = random_ids(1, 15 + open_tokens)
    for boundary in BOUNDARIES:
        token_ids[token_ids == boundary] = 20
    token_ids[0, [4, 9, 14]] = END
    return token_ids


@pytest.mark.parametrize("options, window", [({}, 0), (MEAN, 0), (MEAN, 2), (MEAN, 3)])
def test_tokens_become_likelier_and_weights_stay(options, window):
    model, token_ids = tiny_sllm(**options).train(), text()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    found = refine_latents(model, token_ids, window=window, iterations=20)
    assert found.nats < found.nats_before - 0.01
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    predicted = model.eval().predict_next_latents(model.encode_sentences(token_ids)[0][:, :3])
    changed = (found.latents != predicted).flatten(2).any(-1)[0].tolist()
    assert changed == [False] * (3 - window) + [True] * (window + 1)


def test_leaving_the_prediction_can_cost_too_much():
    model, token_ids = tiny_sllm(), text()
    free, held = (refine_latents(model, token_ids, meta_prior=weight, learning_rate=1e-3) for weight in (1e-3, 1e8))
    assert held.nats_before == free.nats_before
    assert free.nats_before - held.nats < 0.1 * (free.nats_before - free.nats)


def test_the_spread_says_how_far_is_far():
    model, token_ids = tiny_sllm(), text()
    shape = (model.config.num_latents, model.config.latent_size)
    near, far = (refine_latents(model, token_ids, spread=torch.full(shape, size)) for size in (0.01, 10.0))
    assert far.nats < near.nats


def test_the_text_goes_on_from_refined_latents():
    model, token_ids = tiny_sllm(), text()
    found = refine_latents(model, token_ids, learning_rate=1.0)
    with torch.no_grad(), latents_replaced(model.model.sentence_decoder, found.latents):
        expected = model(token_ids, use_cache=False).logits[0, -1]
    options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    written = model.generate(token_ids, past_key_values=found.cache, **options)
    torch.testing.assert_close(written.logits[0][0], expected, atol=1e-5, rtol=1e-4)
    usual = model.generate(token_ids, **options)
    assert not torch.allclose(usual.logits[0][0], expected, atol=1e-3)


@pytest.mark.parametrize(
    "options, given, message",
    [
        ({"latent_predictor": {"type": "flow"}}, {}, "it samples, and gives no one prediction"),
        ({}, {"window": 1}, "`window` is 1: it must be at least 0, and 0 for a model whose"),
        (MEAN, {"window": -1}, "`window` is -1"),
        ({}, {"iterations": 0}, "`iterations` is 0: it must be above 0"),
        ({}, {"meta_prior": -1.0}, "`meta_prior` is -1.0"),
        ({}, {"input_ids": text(0)}, "there is no open one, and `window` is 0"),
        ({}, {"input_ids": text()[:, 8:12]}, "the spread is measured on at least 2"),
        ({}, {"input_ids": text().repeat(2, 1)}, r"`input_ids` has the shape \(2, 18\)"),
    ],
)
def test_what_cannot_be_refined_is_refused(options, given, message):
    with pytest.raises(ValueError, match=message):
        refine_latents(tiny_sllm(**options), **{"input_ids": text(), **given})
