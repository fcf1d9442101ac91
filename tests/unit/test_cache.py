"""The cache can be cut back, reordered, selected from and repeated, and stays what the text makes it."""

import copy

import pytest
import torch
from models import option_model, padded, random_ids, tiny_sllm

OPTIONS = ["default", "sentence_alone", "short_context", "memory", "flow", "paper"]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def fill(model, token_ids, mask=None, chunk: int = 1000):
    cache = None
    for start in range(0, token_ids.shape[1], chunk):
        end = start + chunk
        cache = model(
            token_ids[:, start:end], None if mask is None else mask[:, :end], past_key_values=cache, use_cache=True
        ).past_key_values
    return cache


@pytest.mark.parametrize("chunk", [1, 1000])
@pytest.mark.parametrize("removed", [1, 4, 15, 33, 60])
@pytest.mark.parametrize("option", OPTIONS)
def test_a_cropped_cache_goes_on_as_one_of_the_shorter_text(option, removed, chunk):
    model, token_ids, more = option_model(option), random_ids(1, 60), random_ids(1, 14, seed=5)
    cache = fill(model, token_ids, chunk=chunk)
    cache.crop(-removed)
    assert cache.get_seq_length() == 60 - removed
    logits = model(more, past_key_values=cache, use_cache=True).logits
    whole = model(torch.cat([token_ids[:, : 60 - removed], more], 1)).logits[:, -14:]
    torch.testing.assert_close(logits, whole, **TOLERANCE)


def test_a_cropped_batch_goes_on_as_the_shorter_batch():
    model = tiny_sllm()
    token_ids, mask = padded([random_ids(1, length, seed=length)[0] for length in (30, 17)], "left")
    cache = fill(model, token_ids, mask, chunk=1)
    cache.crop(-12)
    more = random_ids(2, 9, seed=5)
    grown = torch.cat([mask[:, :18], torch.ones_like(more)], 1)
    logits = model(more, grown, past_key_values=cache, use_cache=True).logits
    whole = model(torch.cat([token_ids[:, :18], more], 1), grown).logits[:, -9:]
    torch.testing.assert_close(logits, whole, **TOLERANCE)


@pytest.mark.parametrize(
    "change, rows",
    [
        (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda cache: cache.batch_select_indices(torch.tensor([2, 1])), [2, 1]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    ],
    ids=["reorder", "select", "repeat"],
)
@pytest.mark.parametrize("option", OPTIONS)
def test_rows_of_the_cache_move_as_a_whole(option, change, rows):
    model = option_model(option)
    token_ids, mask = padded([random_ids(1, length, seed=length)[0] for length in (25, 8, 19)], "left")
    cache = fill(model, token_ids, mask, chunk=1)
    change(cache)
    more = random_ids(len(rows), 11, seed=7)
    grown = torch.cat([mask[rows], torch.ones_like(more)], 1)
    logits = model(more, grown, past_key_values=cache, use_cache=True).logits
    whole = model(torch.cat([token_ids[rows], more], 1), grown).logits[:, -11:]
    torch.testing.assert_close(logits, whole, **TOLERANCE)


def test_the_backbone_has_one_entry_for_each_closed_sentence():
    model, token_ids = tiny_sllm(), random_ids(1, 60)
    cache = fill(model, token_ids, chunk=1)
    closed = model.model.segmenter.layout(token_ids, torch.ones_like(token_ids).bool()).token_closes.sum()
    assert cache.language_model.get_seq_length() == closed + 1 < 20


def test_rows_that_wait_are_left_as_they_are():
    """The sentence loop feeds some rows only; the others' columns are masked."""
    model, token_ids, more = tiny_sllm(), random_ids(2, 20), random_ids(2, 10, seed=3)
    cache = fill(model, token_ids)
    feeding = torch.tensor([[1], [0]])
    for token in more[:1].T:
        cache = model(token.expand(2)[:, None], feeding, past_key_values=cache, use_cache=True).past_key_values
    logits = model(more, torch.tensor([[0] * 10, [1] * 10]), past_key_values=cache, use_cache=True).logits
    whole = model(torch.cat([token_ids[1:], more[1:]], 1)).logits
    torch.testing.assert_close(logits[1:], whole[:, -10:], **TOLERANCE)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_cache_may_be_cropped_again_before_it_is_used(option):
    model, token_ids, more = option_model(option), random_ids(1, 60), random_ids(1, 14, seed=5)
    for first, second in ((20, 1), (1, 20), (30, 2), (7, 7)):
        cache = fill(model, token_ids, chunk=1)
        cache.crop(-first)
        cache.crop(-second)
        logits = model(more, past_key_values=cache, use_cache=True).logits
        whole = model(torch.cat([token_ids[:, : 60 - first - second], more], 1)).logits[:, -14:]
        torch.testing.assert_close(logits, whole, **TOLERANCE)


def test_a_cache_that_is_given_is_used():
    model, token_ids = tiny_sllm(), random_ids(1, 20)
    cache = fill(model, token_ids[:, :12])
    logits = model(token_ids[:, 12:], past_key_values=cache, use_cache=False).logits
    torch.testing.assert_close(logits, model(token_ids).logits[:, 12:], **TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_chunks_of_padding_repeat_the_last_logits(side):
    """The third row has chunks with nothing in them, on either side; in the last chunk no row has anything."""
    model = tiny_sllm()
    token_ids, mask = padded([random_ids(1, length, seed=length)[0] for length in (20, 13, 3)], side)
    pad = torch.zeros(3, 4, dtype=torch.long)
    token_ids, mask = torch.cat([token_ids, pad], 1), torch.cat([mask, pad], 1)
    cache, logits = None, []
    for start in range(0, 24, 4):
        outputs = model(token_ids[:, start : start + 4], mask[:, : start + 4], past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        logits.append(outputs.logits)
    torch.testing.assert_close(torch.cat(logits, 1), model(token_ids, mask).logits, **TOLERANCE)


@pytest.mark.parametrize("kept", [1, 3, 30])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("option", [*OPTIONS, "summed", "clauses", "stop_head"])
def test_a_prefill_for_the_last_logits_gives_these_and_a_cache_that_goes_on(option, side, kept):
    model, more = option_model(option), random_ids(3, 14, seed=5)
    token_ids, mask = padded([random_ids(1, length, seed=length)[0] for length in (90, 2, 61)], side)
    outputs = model(token_ids, mask, use_cache=True, logits_to_keep=kept)
    torch.testing.assert_close(outputs.logits, model(token_ids, mask).logits[:, -kept:], **TOLERANCE)
    grown = torch.cat([mask, torch.ones_like(more)], 1)
    whole = model(torch.cat([token_ids, more], 1), grown).logits[:, -14:]
    for chunk in (1, 14):
        cache = copy.deepcopy(outputs.past_key_values)
        logits = []
        for start in range(0, 14, chunk):
            seen = grown[:, : 90 + start + chunk]
            logits.append(model(more[:, start : start + chunk], seen, past_key_values=cache, use_cache=True).logits)
        torch.testing.assert_close(torch.cat(logits, 1), whole, **TOLERANCE)


@pytest.mark.parametrize("removed", [1, 8, 40])
@pytest.mark.parametrize("option", OPTIONS)
def test_a_cache_is_cropped_to_before_what_its_prefill_kept(option, removed):
    model, token_ids, more = option_model(option), random_ids(1, 60), random_ids(1, 14, seed=5)
    cache = model(token_ids, use_cache=True, logits_to_keep=1).past_key_values
    cache.crop(-removed)
    logits = model(more, past_key_values=cache, use_cache=True).logits
    whole = model(torch.cat([token_ids[:, : 60 - removed], more], 1)).logits[:, -14:]
    torch.testing.assert_close(logits, whole, **TOLERANCE)


@pytest.mark.parametrize("option", ["sentence_alone", "short_context", "memory"])
def test_a_prefill_for_the_last_logits_reads_as_little_of_a_long_text_as_of_a_short_one(option):
    model, read = option_model(option), []
    decoder = model.model.sentence_decoder.model
    decoder.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["inputs_embeds"][..., 0].numel()),
                                      with_kwargs=True)  # fmt: skip
    long = random_ids(1, 240)
    for length in (120, 240):
        model(long[:, -length:], use_cache=True, logits_to_keep=1)
    assert read[0] == read[1] < 60
