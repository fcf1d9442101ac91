"""However a text is computed, its logits are the same; every token is scored once."""

import math

import pytest
import torch
from models import BACKBONES, OPTIONS, option_model, padded, random_ids, tiny_sllm

ALL_OPTIONS = [*OPTIONS, "paper"]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def token_by_token(model, token_ids, mask, chunk: int = 1) -> torch.Tensor:
    cache, logits = None, []
    for start in range(0, token_ids.shape[1], chunk):
        outputs = model(
            token_ids[:, start : start + chunk], mask[:, : start + chunk], past_key_values=cache, use_cache=True
        )
        cache = outputs.past_key_values
        logits.append(outputs.logits)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("option", ALL_OPTIONS)
def test_a_batch_equals_its_rows(option, side):
    model = option_model(option)
    rows = [random_ids(1, length, seed=length)[0] for length in (31, 7, 22)]
    token_ids, mask = padded(rows, side)
    logits = model(token_ids, mask).logits
    for row, row_logits, row_mask in zip(rows, logits, mask.bool(), strict=True):
        torch.testing.assert_close(row_logits[row_mask], model(row[None]).logits[0], **TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("chunk", [1, 5])
@pytest.mark.parametrize("option", ALL_OPTIONS)
def test_cached_equals_uncached(option, chunk, side):
    model = option_model(option)
    token_ids, mask = padded([random_ids(1, length, seed=length)[0] for length in (29, 12)], side)
    cached = token_by_token(model, token_ids, mask, chunk)[mask.bool()]
    torch.testing.assert_close(cached, model(token_ids, mask).logits[mask.bool()], **TOLERANCE)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_cached_equals_uncached_for_any_backbone(backbone):
    model = tiny_sllm(backbone)
    token_ids, mask = padded([random_ids(1, length, seed=length)[0] for length in (29, 12)], "left")
    cached = token_by_token(model, token_ids, mask)[mask.bool()]
    torch.testing.assert_close(cached, model(token_ids, mask).logits[mask.bool()], **TOLERANCE)


@pytest.mark.parametrize("option", ["default", "sentence_alone", "short_context"])
def test_the_decoders_cache_is_bounded(option):
    model = option_model(option)
    token_ids = random_ids(1, 200)
    cached = token_by_token(model, token_ids, torch.ones_like(token_ids))
    torch.testing.assert_close(cached, model(token_ids).logits, **TOLERANCE)
    cache = model(token_ids, use_cache=True).past_key_values
    for token in random_ids(1, 100, seed=2)[0]:
        cache = model(token[None, None], past_key_values=cache, use_cache=True).past_key_values
    config = model.config
    reach = config.decoder_context_length + config.max_sentence_length + config.prefix_length
    assert cache.decoder.get_seq_length() <= 2 * (reach + 2 * config.max_sentence_length)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("option", ALL_OPTIONS)
def test_packed_equals_padded(option, implementation):
    model = option_model(option)
    model.set_attn_implementation(implementation)
    token_ids, mask = padded([random_ids(1, length, seed=length)[0] for length in (31, 7, 22)], "right")
    logits = []
    for packed in (False, True):
        model.model.sentence_encoder.packed = model.model.sentence_decoder.packed = packed
        logits.append(model(token_ids, mask).logits[mask.bool()])
    torch.testing.assert_close(*logits, **TOLERANCE)


@pytest.mark.parametrize("option", ALL_OPTIONS)
def test_every_token_is_scored_once(option):
    """The first sentence and the end of text included: the loss is the sum found token by token."""
    model = option_model(option)
    token_ids = torch.cat([torch.tensor([[1]]), random_ids(1, 30), torch.tensor([[2]])], 1)
    loss = model(token_ids, labels=token_ids, num_items_in_batch=1).loss
    log_probs = token_by_token(model, token_ids, torch.ones_like(token_ids)).log_softmax(-1)
    total = sum(log_probs[0, t, token_ids[0, t + 1]].item() for t in range(token_ids.shape[1] - 1))
    assert loss.item() == pytest.approx(-total, abs=1e-4)


def test_the_distribution_after_every_prefix_sums_to_one_and_to_the_texts_probability():
    """All continuations of length 2 over the vocabulary together have probability 1: nothing is scored twice."""
    model = tiny_sllm()
    prefix = torch.cat([torch.tensor([[1]]), random_ids(1, 6)], 1)
    vocab_size = model.config.vocab_size
    first = model(prefix).logits[0, -1].log_softmax(-1)
    extended = torch.cat([prefix.expand(vocab_size, -1), torch.arange(vocab_size)[:, None]], 1)
    second = model(extended).logits[:, -1].log_softmax(-1)
    assert (first[:, None] + second).logsumexp((0, 1)).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_the_loss(side):
    model = tiny_sllm()
    rows = [random_ids(1, length, seed=length)[0] for length in (31, 7)]
    token_ids, mask = padded(rows, side)
    loss = model(token_ids, mask, labels=token_ids.masked_fill(mask == 0, -100), num_items_in_batch=1).loss
    alone = sum(model(row[None], labels=row[None], num_items_in_batch=1).loss for row in rows)
    torch.testing.assert_close(loss, alone, **TOLERANCE)


def test_the_loss_is_the_mean_over_scored_tokens():
    model, token_ids = tiny_sllm(), random_ids(2, 15)
    labels = token_ids.clone()
    labels[0, :6] = -100
    logits = model(token_ids).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(model(token_ids, labels=labels).loss, expected, **TOLERANCE)
    assert math.isfinite(expected)


def test_logits_to_keep_are_the_last_ones():
    model, token_ids = tiny_sllm(), random_ids(2, 15)
    logits = model(token_ids).logits
    torch.testing.assert_close(model(token_ids, logits_to_keep=3).logits, logits[:, -3:], **TOLERANCE)
    kept = torch.tensor([2, 9])
    torch.testing.assert_close(model(token_ids, logits_to_keep=kept).logits, logits[:, kept], **TOLERANCE)


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model, token_ids = tiny_sllm().train(), random_ids(2, 15)
        if checkpointing:
            model.gradient_checkpointing_enable()
        with torch.enable_grad():
            model(token_ids, labels=token_ids).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        if gradient is not None:
            torch.testing.assert_close(gradients[1][name], gradient, **TOLERANCE)


def test_a_hole_in_the_mask_scores_the_text_without_it():
    model, text = tiny_sllm(), random_ids(1, 20)
    mask = torch.ones(1, 26, dtype=torch.long)
    mask[0, 8:14] = 0
    token_ids = torch.zeros_like(mask)
    token_ids[mask.bool()] = text[0]
    loss = model(token_ids, mask, labels=token_ids, num_items_in_batch=1).loss
    torch.testing.assert_close(loss, model(text, labels=text, num_items_in_batch=1).loss, **TOLERANCE)


@pytest.mark.parametrize("training", [False, True])
def test_labels_that_are_already_shifted_give_the_same_loss(training):
    model, token_ids = tiny_sllm(reconstruction_weight=1.0).train(training), random_ids(2, 15)
    shifted = torch.nn.functional.pad(token_ids[:, 1:], (0, 1), value=-100)
    losses, expected = model(token_ids, shift_labels=shifted).losses, model(token_ids, labels=token_ids).losses
    torch.testing.assert_close(losses["next_sentence"], expected["next_sentence"], **TOLERANCE)
    # The first token's own label is the one that shifting drops.
    assert ("reconstruction" in losses) == training
    with pytest.raises(TypeError, match="label_smoothing"):
        model(token_ids, label_smoothing=token_ids)
