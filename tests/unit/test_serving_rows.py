"""The batch that a server writes: rows join and leave where sentences end, and each text is the one written alone."""

import pytest
import torch
from models import BACKBONES, BOUNDARIES, COMMON, LLAMA_LIKE, OPTIONS, option_model, random_ids, tiny_sllm
from transformers import AutoConfig, GenerationConfig, LlamaConfig

from hf_sllm.modeling import SllmConfig, SllmForCausalLM
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
        *(pytest.param(lambda name=name: option_model(name), id=name) for name in (*OPTIONS, "paper")),
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


@pytest.mark.parametrize("name", ["lfm2", "gemma3_text"])
def test_a_backbone_that_would_count_holes_has_a_cache_for_each_row(name):
    """It carries a state along, or its window is shorter than the texts."""
    fields = {"lfm2": {"layer_types": ["conv", "full_attention", "conv"]}, "gemma3_text": {"sliding_window": 3}}[name]
    config = AutoConfig.for_model(name, **COMMON, **LLAMA_LIKE, **fields)
    part = LlamaConfig(**COMMON, **LLAMA_LIKE)
    parts = {"sentence_encoder_config": part, "sentence_decoder_config": part}
    torch.manual_seed(0)
    settings = {"boundary_token_ids": BOUNDARIES, "max_sentence_length": 5, "decoder_context_length": 3}
    model = SllmForCausalLM(SllmConfig(text_config=config, **settings, **parts)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.15)
    asked = [(ids, 20) for ids in prompts(4)]
    assert write_in_turn(model, asked) == [alone(model, *one) for one in asked]


def test_what_one_row_cannot_do_fails_alone():
    model = tiny_sllm()
    good, other = prompts(2)
    writer = Scheduler(model)
    rows = [
        Row(good, greedy(20)),
        Row([3, 999], greedy(20)),  # no such token
        Row(good, greedy(20, latent_seed=1)),  # of a model that samples no latents
        Row(other, greedy(20), on_sentence=lambda ids: 1 / 0),
        Row(other, greedy(20, repetition_penalty=1.3)),
    ]
    found = [writer.submit(row) for row in rows]
    assert found[0].result(60) == alone(model, good, 20)
    assert found[4].result(60) == alone(model, other, 20, repetition_penalty=1.3) != alone(model, other, 20)
    for index, error in ((1, ValueError), (2, ValueError), (3, ZeroDivisionError)):
        with pytest.raises(error):
            found[index].result(60)


def test_no_more_rows_than_allowed_are_in_the_batch_and_all_are_written():
    model = tiny_sllm()
    writer = Scheduler(model, max_rows=2)
    found = [writer.submit(Row(ids, greedy(20))) for ids in prompts()]
    assert [future.result(60) for future in found] == [alone(model, ids, 20) for ids in prompts()]
    assert writer.most_rows == 2


def test_latents_of_a_seed_are_the_same_in_any_batch():
    model = option_model("flow")
    settings = GenerationConfig(max_new_tokens=30, eos_token_id=2, pad_token_id=0, do_sample=True)
    ids, *others = prompts()
    writer = Scheduler(model)
    by_itself = writer.submit(Row(ids, settings, seed=3)).result(60)
    rows = [Row(own, settings, seed=3 + index) for index, own in enumerate([ids, *others, ids])]
    found = [writer.submit(row) for row in rows]
    assert found[0].result(60) == by_itself != found[-1].result(60)
