"""The batch that a server writes: rows join and leave where sentences end, and each text is the one written alone."""

import pytest
import torch
from models import BACKBONES, OPTIONS, option_model, random_ids, tiny_sllm
from transformers import GenerationConfig

from hf_sllm.serving import cache_rows
from hf_sllm.serving.scheduler import Row, Scheduler


def greedy(length: int, **settings) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=length, eos_token_id=2, pad_token_id=0, do_sample=False, **settings)


def alone(model, ids: list[int], length: int, **settings) -> list[int]:
    written = model.generate(torch.tensor([ids]), greedy(length, **settings), max_sentences=1000)
    return written[0, len(ids) :].tolist()


def prompts(count: int = 6) -> list[list[int]]:
    return [random_ids(1, 3 + 5 * index, seed=index)[0].tolist() for index in range(count)]


def write_in_turn(model, asked: list[tuple[list[int], int]], max_rows: int = 3) -> list[list[int]]:
    """Texts that join one another: each asks for the next as soon as its own first sentence is written."""
    writer, rows = Scheduler(model, max_rows), [Row(ids, greedy(length)) for ids, length in asked]
    for row, following in zip(rows, rows[1:], strict=False):
        row.on_sentence = lambda _, row=row, following=following: (
            row.streamed > row.prompt_length or writer.submit(following)
        )
    writer.submit(rows[0])
    found = [row.future.result(60) for row in rows]
    assert writer.most_rows > 1
    return found


@pytest.mark.parametrize(
    "make",
    [
        *(pytest.param(lambda name=name: option_model(name), id=name) for name in OPTIONS),
        *(pytest.param(lambda name=name: tiny_sllm(name), id=name) for name in BACKBONES),
    ],
)
def test_rows_that_join_and_leave_write_what_they_write_alone(make):
    model = make()
    asked = [(ids, 12 + 7 * (index % 3)) for index, ids in enumerate(prompts())]
    assert write_in_turn(model, asked) == [alone(model, *one) for one in asked]


def test_without_masks_on_what_was_joined_the_texts_would_be_others(monkeypatch):
    """The control: holes that pass for sentences change what is written."""
    model, asked = tiny_sllm(), [(ids, 40) for ids in prompts()]
    monkeypatch.setitem(cache_rows.ENTRIES, "entry_sentence", 0)
    assert write_in_turn(model, asked) != [alone(model, *one) for one in asked]
