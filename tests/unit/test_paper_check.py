"""The broken models see or score what they should not, the right one does not, and the floor is exact."""

import copy
import importlib
import math
from functools import partial

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from hf_sllm.cli import app
from hf_sllm.evaluation.paper_check import END, LONGEST, PADDING, SYMBOLS, bits_of, token_nats, under_neighbours_mask

check = importlib.import_module("hf_sllm.evaluation.paper_check")  # not the function of that name

# Each sentence can be told from the others; the third has more symbols than the second, the fourth fewer.
TEXT = [[3, 4, END], [5, END], [6, 7, 8, END], [9, END]]
THIRD = len(TEXT[0]) + len(TEXT[1])  # where the third sentence begins among the scored tokens
LAST_SYMBOL = 2  # of the third sentence


@pytest.fixture(scope="module")
def model():
    return check.small_model(seed=0)


def with_other_symbol(sentence: int, place: int) -> list[list[int]]:
    text = copy.deepcopy(TEXT)
    text[sentence][place] += 7
    return text


@torch.no_grad()
def nats(model, text, neighbours_mask=False) -> torch.Tensor:
    return token_nats(model, [text], neighbours_mask)[0]


def test_with_right_masks_no_token_before_depends_on_one_that_follows(model):
    changed = with_other_symbol(2, LAST_SYMBOL)
    assert torch.equal(nats(model, TEXT)[: THIRD + LAST_SYMBOL], nats(model, changed)[: THIRD + LAST_SYMBOL])


@pytest.mark.parametrize("place", [0, THIRD], ids=["sentences before", "the sentence itself"])
def test_without_its_causal_mask_the_backbone_tells_what_follows(model, place):
    with check.without_causal_mask(model):
        before, after = nats(model, TEXT)[place], nats(model, with_other_symbol(2, LAST_SYMBOL))[place]
    assert before != after


def test_the_causal_mask_is_back_afterwards(model):
    before = nats(model, TEXT)
    with check.without_causal_mask(model):
        assert not torch.equal(nats(model, TEXT), before)
    assert torch.equal(nats(model, TEXT), before)


def test_the_neighbours_mask_cuts_pads_and_moves_ends():
    assert under_neighbours_mask(TEXT) == [[3, 4, END], [5, PADDING, END], [6, END], [9, PADDING, PADDING, END]]


def test_under_the_neighbours_mask_different_texts_score_alike(model):
    """A code whose words do not tell texts apart is no code: its length is no likelihood."""
    text, changed = TEXT[:3], with_other_symbol(2, LAST_SYMBOL)[:3]
    assert torch.equal(nats(model, text, neighbours_mask=True), nats(model, changed, neighbours_mask=True))
    assert not torch.equal(nats(model, text), nats(model, changed))


def test_under_the_neighbours_mask_the_latents_are_still_those_of_the_text(model):
    """The symbol changed is not scored, and the sentence after it knows of the change."""
    changed = with_other_symbol(2, LAST_SYMBOL)
    scored = sum(len(sentence) for sentence in under_neighbours_mask(TEXT)[:3])
    before, after = nats(model, TEXT, neighbours_mask=True), nats(model, changed, neighbours_mask=True)
    assert torch.equal(before[:scored], after[:scored])
    assert not torch.equal(before[scored:], after[scored:])


def test_the_right_way_is_the_loss_of_the_library(model):
    texts = check.draw_texts(5, torch.Generator().manual_seed(3))
    token_ids, mask = check.padded(texts)
    with torch.no_grad():
        loss = model(token_ids, mask.long(), labels=token_ids.masked_fill(~mask, -100)).loss
        mean = token_nats(model, texts, False).sum() / mask[:, 1:].sum()
    assert torch.allclose(loss, mean, atol=1e-5)


def test_the_probabilities_of_all_sentences_add_up_to_one():
    lengths = range(1, LONGEST + 1)
    total = sum(SYMBOLS**length * 2 ** -bits_of([[3] * length + [END]]) for length in lengths)
    assert math.isclose(total, 1)
    drawn = {len(sentence) - 1 for text in check.draw_texts(50, torch.Generator()) for sentence in text}
    assert drawn == set(lengths)


@pytest.mark.parametrize(("used", "below"), [(9.0, True), (9.99, False), (10.0, False), (11.0, False)])
def test_a_model_is_below_the_entropy_if_more_than_luck_says_so(used, below):
    luck = torch.tensor([-1.0, 1.0]).repeat(50).double()  # its standard error over 100 texts is 0.1
    drawn = torch.full((100,), 10.0).double()
    row = check.make_row("", drawn - 10 + used + luck, drawn, tokens=500)
    assert math.isclose(row.entropy, 2) and math.isclose(row.bits_per_token, used / 5)
    assert math.isclose(row.standard_error, 0.1 / 5, rel_tol=0.01)
    assert row.below is below


def test_every_way_begins_with_the_same_weights_and_leaves_the_random_state(monkeypatch):
    monkeypatch.setattr(check, "HELD_OUT", 16)
    monkeypatch.setattr(check, "LEARNING_RATE", 0.0)
    state = torch.get_rng_state()
    right, causal, neighbour = check.paper_check(steps=1, seed=1, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    model = check.small_model(seed=1)
    assert right == check.measure(model, False, 1, right.name)
    assert neighbour == check.measure(model, True, 1, neighbour.name)
    with check.without_causal_mask(model):
        assert causal == check.measure(model, False, 1, causal.name)
    assert len({row.bits_per_token for row in (right, causal, neighbour)}) == 3
    assert not right.below


@pytest.mark.parametrize("options", [{"steps": 0}, {"seed": -1}])
def test_what_cannot_be_is_refused_by_name(options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` is"):
        check.paper_check(**options)


def test_the_command_prints_a_row_for_each_way(monkeypatch):
    monkeypatch.setattr(check, "HELD_OUT", 16)
    monkeypatch.setattr("hf_sllm.cli.evaluate.Console", partial(Console, width=160))
    result = CliRunner().invoke(app, ["paper-check", "--steps", "1"])
    assert result.exit_code == 0, result.output
    for part in ("both masks right", "without its causal mask", "neighbour's mask"):
        assert part in result.stdout
