"""Tokens are chosen from lists: with all tokens on them nothing changes, others never come."""

import math

import pytest
import torch
from models import VOCAB_SIZE, random_ids, tiny_sllm

from hf_sllm.modeling.token_shortlist import ShortlistedHead, fit_directions, guessed_scores, largest, weighted_sum


@pytest.fixture(scope="module")
def model():
    return tiny_sllm(bag_of_words_weight=0.5)


def generate(model, token_ids, **kwargs):
    kwargs = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 0, "max_sentences": math.inf, **kwargs}
    return model.generate(token_ids, **kwargs)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_list_of_all_tokens_writes_the_same_text(model, batch_size):
    token_ids = random_ids(batch_size, 20)
    expected = generate(model, token_ids)
    assert torch.equal(generate(model, token_ids, shortlist_size=VOCAB_SIZE), expected)
    assert torch.equal(generate(model, token_ids, shortlist_size=10**6), expected)


def test_each_sentence_is_written_in_the_tokens_that_its_beginning_makes_likely(model):
    token_ids = random_ids(1, 20)
    text = generate(model, token_ids, shortlist_size=5, max_new_tokens=60)
    layout = model.model.segmenter.layout(text, torch.ones_like(text).bool())
    states = model.model(text).last_hidden_state[0]
    checked = 0
    for rank in (layout.token_closes & (layout.token_rank >= 19)).nonzero().squeeze(1).tolist()[:-1]:
        scores = model.compute_logits(model.shortlist_head(states[rank]))
        scores[model.config.eos_token_id] = torch.inf
        sentence = layout.token_sentence == layout.token_sentence[rank] + 1
        assert set(text[0, sentence].tolist()) <= set(scores.topk(5).indices.tolist())
        checked += int(sentence.sum())
    assert checked > 10


def test_the_sentence_that_a_prompt_leaves_open_has_all_tokens(model):
    token_ids = random_ids(1, 20)
    token_ids[0, -1] = 30  # closes nothing
    open_length = model(token_ids, use_cache=True).past_key_values.open_length
    assert open_length.item() > 0
    rest = generate(model, token_ids, max_sentences=1)
    assert torch.equal(generate(model, token_ids, max_sentences=1, shortlist_size=2), rest)


def test_logits_on_the_list_are_those_of_the_head_and_the_others_minus_infinity(model):
    states = torch.randn(2, model.config.text_config.hidden_size)
    head, everything = ShortlistedHead(model, 7), model.compute_logits(states)
    assert torch.equal(head.logits(states, torch.tensor([True, False])), everything)  # the second row has no list yet
    logits = head.logits(states, torch.tensor([False, True]))
    listed = logits > -torch.inf
    assert listed.sum(1).tolist() == [7, 7] and listed[:, model.config.eos_token_id].all()
    torch.testing.assert_close(logits[listed], everything[listed])


def test_a_fit_guesses_from_few_directions_what_the_head_says_of_the_text():
    """States that lie in three directions are told by three; others are not."""
    torch.manual_seed(0)
    states, weight = torch.randn(50, 3) @ torch.randn(3, 16), torch.randn(61, 16)
    directions, table = fit_directions(states, weight, 3)
    assert directions.shape == (3, 16) and table.shape == (3, 61)
    torch.testing.assert_close(states @ directions.T @ table, states @ weight.T, rtol=1e-2, atol=1e-2)
    other = torch.randn(50, 16)
    assert (other @ directions.T @ table - other @ weight.T).std() > 1


@pytest.mark.parametrize("vocab_size", [2048, 2051])
@pytest.mark.parametrize("size", [1, 40, 300, 2000])
def test_the_largest_scores_are_found(vocab_size, size):
    scores = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(0))
    found = largest(scores, size)
    assert torch.equal(found.sort().values, scores.topk(size).indices.sort().values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("vocab_size", [2048, 2051, 7])
def test_a_weighted_sum_is_the_product(vocab_size, batch_size, dtype):
    rows, weights = torch.randn(5, vocab_size).to(dtype), torch.randn(batch_size, 5).to(dtype)
    torch.testing.assert_close(weighted_sum(weights, rows), weights @ rows, rtol=0.02, atol=0.02)


def test_a_fitted_model_chooses_a_list_for_each_token_and_from_all_directions_writes_the_same_text():
    model, token_ids = tiny_sllm(), random_ids(3, 20)
    expected = generate(model, token_ids)
    model.fit_shortlist(random_ids(4, 50))
    assert torch.equal(generate(model, token_ids, shortlist_size=2), expected)
    assert "shortlist" not in str(model.state_dict().keys())


def test_a_fitted_models_logits_are_the_heads_own_on_the_list_and_guessed_elsewhere():
    model, token_ids = tiny_sllm(), random_ids(3, 20)
    model.fit_shortlist(random_ids(4, 50), rank=4)
    states = model.model(token_ids).last_hidden_state[:, -1]
    logits = ShortlistedHead(model, 7).logits(states, torch.zeros(3, dtype=torch.bool))
    whole, guessed = model.compute_logits(states), guessed_scores(model, states)
    listed = guessed >= guessed.topk(7).values[:, -1:]
    assert listed.sum(1).tolist() == [7, 7, 7] and listed[:, model.config.eos_token_id].all()
    torch.testing.assert_close(logits[listed], whole[listed])
    torch.testing.assert_close(logits[~listed], guessed[~listed])
    assert (logits - whole)[~listed].abs().max() > 0.01


def test_a_fitted_model_writes_under_autocast():
    model, token_ids = tiny_sllm(), random_ids(1, 20)
    model.fit_shortlist(random_ids(4, 50), rank=4)
    with torch.autocast("cpu", torch.bfloat16):
        assert generate(model, token_ids, shortlist_size=7).shape[1] > 20


def test_every_end_of_text_is_on_a_list_that_is_shorter_than_these():
    model = tiny_sllm(eos_token_id=[2, 5])
    model.fit_shortlist(random_ids(4, 50), rank=4)
    states = torch.randn(3, model.config.text_config.hidden_size)
    logits = ShortlistedHead(model, 1).logits(states, torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(logits[:, [2, 5]], model.compute_logits(states)[:, [2, 5]])


@pytest.mark.parametrize("rank", [0, 33, 21])
def test_a_rank_that_cannot_be_fitted_is_refused(rank):
    with pytest.raises(ValueError, match="`rank` is"):
        tiny_sllm().fit_shortlist(random_ids(1, 20), rank=rank)


def test_the_loss_is_the_cross_entropy_of_each_token_given_its_sentences_beginning(model):
    token_ids = random_ids(2, 40)
    model.train()
    outputs = model(token_ids, labels=token_ids)
    model.eval()
    layout = model.model.segmenter.layout(token_ids, torch.ones_like(token_ids).bool())
    states = model.model(token_ids).last_hidden_state
    expected, start = 0.0, None
    for row, rank, token in zip(layout.token_row, layout.token_rank, token_ids.flatten(), strict=True):
        if start is not None and rank > 0:
            log_probs = model.compute_logits(model.shortlist_head(start)).log_softmax(-1)
            expected -= log_probs[token].item()
        closes = layout.token_closes[row * 40 + rank]
        start = states[row, rank] if closes else (None if rank == 0 else start)
    assert outputs.losses["bag_of_words"].item() == pytest.approx(expected / 78, rel=1e-4)
    total = outputs.losses["next_sentence"] + 0.5 * outputs.losses["bag_of_words"]
    assert outputs.loss.item() == pytest.approx(total.item(), rel=1e-5)


@pytest.mark.parametrize(
    "weight, kwargs, message",
    [
        (0.0, {"shortlist_size": 5}, "was not fitted: call `fit_shortlist`"),
        (1.0, {"shortlist_size": 5, "max_sentences": None}, "needs `max_sentences`"),
        (1.0, {"shortlist_size": 0}, "`shortlist_size` is 0"),
    ],
)
def test_a_list_that_cannot_be_is_refused(weight, kwargs, message):
    with pytest.raises(ValueError, match=message):
        generate(tiny_sllm(bag_of_words_weight=weight), random_ids(1, 20), **kwargs)


def test_coverage_counts_the_tokens_that_the_lists_hold(monkeypatch):
    from hf_sllm.evaluation import shortlist

    model = tiny_sllm(bag_of_words_weight=0.5)
    token_ids, other = random_ids(1, 40), random_ids(1, 41, seed=5)  # the longest block is for the fit
    monkeypatch.setattr(shortlist, "document_ids", lambda texts, tokenizer: [*token_ids.tolist(), *other.tolist()])
    tokenizer = type("Tokenizer", (), {"eos_token_id": 2})
    found = shortlist.shortlist_coverage(model, tokenizer, [], sizes=(3, 20, 60, 61), progress=False)

    layout = model.model.segmenter.layout(token_ids, torch.ones_like(token_ids).bool())
    states = model.model(token_ids).last_hidden_state
    on_list, mass, nats, count, start = 0, 0.0, 0.0, 0, None
    for row, rank, token in zip(layout.token_row, layout.token_rank, token_ids.flatten(), strict=True):
        start = None if rank == 0 else start
        if start is not None:
            nats -= model.compute_logits(states[row, rank - 1]).log_softmax(-1)[token].item()
            scores = model.compute_logits(model.shortlist_head(start))
            scores[model.config.eos_token_id] = torch.inf
            chosen = scores.topk(20).indices
            on_list += int(token in chosen)
            mass += model.compute_logits(states[row, rank - 1]).softmax(-1)[chosen].sum().item()
            count += 1
        if layout.token_closes[row * 40 + rank]:
            start = states[row, rank]
    assert (found.sizes, found.tokens) == ((3, 20, 60), count)
    assert found.nats == pytest.approx(nats / count, rel=1e-5)
    best, by_token, by_sentence = found.lists
    assert by_sentence.coverage[1] == pytest.approx(on_list / count)
    assert by_sentence.mass[1] == pytest.approx(mass / count, abs=1e-5)
    assert by_sentence.coverage[0] < by_sentence.coverage[1] < by_sentence.coverage[2]
    # All directions of a state guess the head itself, but for the end of text, which is always on the list.
    assert by_token.same == (1, 1, 1) and model.shortlist_fit is None
    assert by_token.nats == pytest.approx([found.nats] * 3, rel=1e-4) and by_sentence.nats is None
    assert by_token.mass[1] == pytest.approx(best.mass[1], abs=0.03)
