"""The sentence VAE by itself, and what its options do."""

import math

import pytest
import torch
from models import BOUNDARIES, padded, random_ids, tiny_backbone, tiny_sllm

from hf_sllm.modeling import SentenceVaeConfig, SentenceVaeModel
from hf_sllm.modeling.latent_objectives import kl_divergence, sample_latents
from hf_sllm.modeling.sentence_decoder import drop_inputs
from hf_sllm.modeling.token_losses import chunked_token_loss, token_loss


def tiny_vae(paper: bool = False, **fields) -> SentenceVaeModel:
    torch.manual_seed(0)
    fields = {"boundary_token_ids": BOUNDARIES, "max_sentence_length": 9, **fields}
    make = SentenceVaeConfig.paper if paper else SentenceVaeConfig.from_text_config
    return SentenceVaeModel(make(tiny_backbone().config, decoder_layers=1, **fields)).eval()


@pytest.mark.parametrize("options", [{}, {"paper": True}], ids=["default", "paper"])
def test_it_learns_to_reconstruct(options):
    model, token_ids = tiny_vae(**options).train(), random_ids(8, 40)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(250):
        loss = model(token_ids, labels=token_ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    layout = model.segmenter.layout(token_ids, torch.ones_like(token_ids).bool())
    ids = token_ids.flatten()[layout.token_index]
    sentences = [ids[layout.token_sentence == index] for index in range(len(layout.sentence_row))]
    written = model.reconstruct(token_ids)
    exact = [
        torch.equal(a, b) for a, b, closed in zip(written, sentences, layout.sentence_closed, strict=True) if closed
    ]
    assert sum(exact) / len(exact) > 0.9


def test_a_sentence_is_reconstructed_from_its_own_latents_alone():
    """The logits of a sentence do not change with another sentence."""
    model, token_ids = tiny_vae(), random_ids(1, 40)
    layout = model.segmenter.layout(token_ids, torch.ones_like(token_ids).bool())
    changed = token_ids.clone()
    same = layout.token_sentence != 1
    changed[0, ~same & ~layout.token_closes] = 30  # which closes no sentence, so the others stay as they are
    with torch.no_grad():
        torch.testing.assert_close(model(token_ids).logits[0, same], model(changed).logits[0, same])
        assert not torch.allclose(model(token_ids).logits[0, ~same], model(changed).logits[0, ~same])


def test_its_logits_are_those_that_decode_writes_by(monkeypatch):
    model = tiny_vae()
    latents = model.encode(random_ids(1, 9))[:1]
    written = model.decode(latents)[0]
    monkeypatch.setattr(model.sentence_encoder, "forward", lambda *_: (latents, None))
    assert torch.equal(model(written[None]).logits[0].argmax(-1), written)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_latent(side):
    model = tiny_vae()
    rows = [random_ids(1, length, seed=length)[0] for length in (23, 8)]
    together = model.encode(*padded(rows, side))
    alone = torch.cat([model.encode(row[None]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_encode_predict_and_decode_are_what_the_forward_pass_does():
    """The three calls by hand give the first token of each next sentence as `forward` does."""
    model, token_ids = tiny_sllm(decoder_context_length=0), random_ids(1, 40)
    with torch.no_grad():
        latents, mask = model.encode_sentences(token_ids)
        predicted = model.predict_next_latents(latents, mask)
        assert predicted.shape[1] == latents.shape[1] + 1
        written = model.decode_latents(predicted[0])
        layout = model.model.segmenter.layout(token_ids, torch.ones_like(token_ids).bool())
        following = model(token_ids).logits[0, layout.token_closes].argmax(-1)
    assert [sentence[0].item() for sentence in written[1 : len(following) + 1]] == following.tolist()


def test_token_loss_is_cross_entropy_and_the_focal_factor_discounts_what_is_known():
    logits, targets = torch.randn(50, 7), torch.randint(7, (50,))
    targets[:5] = -100
    nats = torch.nn.functional.cross_entropy(logits, targets, reduction="none")[5:]
    torch.testing.assert_close(token_loss(logits, targets), nats.sum())
    torch.testing.assert_close(token_loss(logits, targets, 2.0), (nats * (1 - torch.exp(-nats)) ** 2).sum())


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("trainable_head", [True, False])
def test_the_loss_in_chunks_is_that_of_the_whole_and_so_are_its_gradients(gamma, trainable_head):
    head = torch.nn.Linear(6, 11).requires_grad_(trainable_head)
    states, targets = torch.randn(50, 6, requires_grad=True), torch.randint(11, (50,))
    targets[::4] = -100
    inputs = [states, *(head.parameters() if trainable_head else [])]
    largest = 0

    def adjust(logits):
        nonlocal largest
        largest = max(largest, len(logits))
        return logits

    whole = token_loss(head(states), targets, gamma)
    chunked = chunked_token_loss(states, targets, head, adjust, gamma, chunk_elements=4 * 11)
    assert largest == 4
    torch.testing.assert_close(chunked, whole)
    expected, found = (torch.autograd.grad(0.5 * loss, inputs) for loss in (whole, chunked))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("make_model", [tiny_sllm, tiny_vae])
def test_skipping_the_logits_changes_neither_losses_nor_gradients(make_model):
    model, token_ids = make_model(stop_head=True).train(), random_ids(2, 30)
    model.set_attn_implementation("eager")
    labels = token_ids.masked_fill(torch.rand(token_ids.shape) < 0.2, -100)
    found = []
    for skip_logits in (False, True):
        model.zero_grad()
        outputs = model(token_ids, labels=labels, skip_logits=skip_logits)
        assert (outputs.logits is None) == skip_logits
        outputs.loss.backward()
        found.append([outputs.loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="`skip_logits` is true without `labels`"):
        model(token_ids, skip_logits=True)


def test_kl_is_that_of_the_normal_distributions_clamped_unit_by_unit():
    config = tiny_vae(kl_weight=1.0).config
    mean, log_variance = torch.randn(3, 2, 8), torch.randn(3, 2, 8)
    given = torch.distributions.Normal(mean, torch.exp(log_variance / 2))
    expected = torch.distributions.kl_divergence(given, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_divergence(config, mean, log_variance), expected.sum())
    config.kl_free_bits = 0.5
    torch.testing.assert_close(kl_divergence(config, mean, log_variance), expected.clamp(min=0.5 * math.log(2)).sum())
    config.kl_max_bits = 1.5
    clamped = expected.clamp(0.5 * math.log(2), 1.5 * math.log(2))
    torch.testing.assert_close(kl_divergence(config, mean, log_variance), clamped.sum())


def test_the_kl_scale_multiplies_the_weight_of_the_kl_term():
    model, token_ids = tiny_vae(kl_weight=0.5).train(), random_ids(1, 30)
    model.kl_scale = 0.25
    outputs = model(token_ids, labels=token_ids)
    torch.testing.assert_close(outputs.loss, outputs.losses["reconstruction"] + 0.125 * outputs.losses["kl"])


@pytest.mark.parametrize("training", [True, False])
def test_noise_and_dropout_act_in_training_only(training):
    config = tiny_vae(latent_noise=0.5, token_dropout=0.25, latent_dropout=0.75).config
    latents, embeds = torch.ones(2000, 2, 4), torch.ones(2000, 4)
    noise = sample_latents(config, latents, None, training) - latents
    assert noise.std().item() == pytest.approx(0.5 if training else 0.0, abs=0.02)
    dropped = drop_inputs(config, embeds, latents, training)
    for values, share in zip(dropped, (0.25, 0.75), strict=True):
        hidden = (values.flatten(1) == 0).float()
        assert torch.equal(hidden.amin(1), hidden.amax(1))  # a vector is hidden as a whole
        assert hidden.mean().item() == pytest.approx(share if training else 0.0, abs=0.05)


@torch.no_grad()
def test_context_dropout_hides_all_before_the_sentence_in_training_only():
    """With context a token before the sentence reaches its logits past the latents; without, through them alone."""
    model, token_ids = tiny_sllm(decoder_context_length=20, context_dropout=1.0), random_ids(1, 40)
    model.model.sentence_encoder.latent_head.weight.zero_()  # nothing comes through the latents
    other = token_ids.clone()
    token_ids[0, 0], other[0, 0] = 30, 31
    last = model.model.segmenter.layout(token_ids, torch.ones_like(token_ids).bool()).token_sentence == 2
    for training in (True, False):
        model.train(training)
        same = torch.allclose(model(token_ids).logits[0, last], model(other).logits[0, last], atol=1e-6)
        assert same == training


def test_the_loss_is_the_weighted_sum_of_its_terms_in_training_and_cross_entropy_otherwise():
    options = {"stop_head": True, "stop_weight": 0.3, "kl_weight": 0.1, "reconstruction_weight": 0.7}
    model, token_ids = tiny_sllm(**options), random_ids(2, 30)
    plain = model(token_ids, labels=token_ids)
    assert set(plain.losses) == {"next_sentence"} and plain.loss == plain.losses["next_sentence"]
    outputs = model.train()(token_ids, labels=token_ids)
    weights = {"next_sentence": 1.0, "stop": 0.3, "kl": 0.1, "reconstruction": 0.7}
    assert set(outputs.losses) == set(weights)
    torch.testing.assert_close(outputs.loss, sum(weights[name] * term for name, term in outputs.losses.items()))
    assert outputs.stop_logits.shape == token_ids.shape


def test_the_reconstruction_term_trains_on_the_sentences_own_latents():
    """It reaches the encoder even where the backbone's prediction is cut off."""
    model, token_ids = tiny_sllm(reconstruction_weight=1.0).train(), random_ids(2, 30)
    model(token_ids, labels=token_ids).losses["reconstruction"].backward()
    assert model.model.sentence_encoder.latent_head.weight.grad.abs().max() > 0
    assert model.model.latent_output.weight.grad is None
