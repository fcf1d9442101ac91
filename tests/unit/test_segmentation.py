"""Sentences partition the tokens, and where they end depends on no later token."""

import pytest
import torch
from models import BOUNDARIES, random_ids, tiny_backbone
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_sllm.modeling import SentenceSegmenter, SllmConfig, boundary_tokens

CLAUSES = [11, 12, 13, 14, 15, 16]


def segmenter(**fields) -> SentenceSegmenter:
    fields = {"boundary_token_ids": BOUNDARIES, "max_sentence_length": 9, "min_clause_length": 4, **fields}
    return SentenceSegmenter(SllmConfig.from_text_config(tiny_backbone().config, decoder_layers=1, **fields))


PLAIN = 20  # closes nothing


def by_hand(token_ids: list[int], config, open_length: int = 0) -> list[bool]:
    """The rule, one token after the other."""
    closes, length = [], open_length
    for token in token_ids:
        length += 1
        boundary = token in config.boundary_token_ids and length >= config.min_sentence_length
        clause = token in config.clause_token_ids and length >= config.min_clause_length
        is_end = token == config.eos_token_id
        closes.append(boundary or clause or is_end or length >= config.max_sentence_length)
        length = 0 if closes[-1] else length
    return closes


@pytest.mark.parametrize("clauses", [[], CLAUSES])
@pytest.mark.parametrize("open_length", [0, 3, 8])
@pytest.mark.parametrize("length", [1, 2, 50])
@pytest.mark.parametrize("shortest", [1, 2, 5])
def test_tokens_close_sentences_as_the_rule_says(length, open_length, clauses, shortest):
    segment = segmenter(clause_token_ids=clauses, min_sentence_length=shortest)
    token_ids = random_ids(4, length, seed=length)
    token_ids[0, -1] = segment.config.eos_token_id
    token_ids[1, : length // 2] = BOUNDARIES[0]
    whole = torch.cat([torch.full((4, open_length), PLAIN), token_ids], 1)  # after an open sentence
    layout = segment.layout(whole, torch.ones_like(whole).bool())
    expected = [by_hand(row, segment.config, open_length) for row in token_ids.tolist()]
    assert layout.scatter(layout.token_closes)[:, open_length:].tolist() == expected


def test_closing_one_token_at_a_time_agrees_with_the_layout():
    segment = segmenter(clause_token_ids=CLAUSES)
    token_ids, length = random_ids(1, 60), torch.zeros(1, dtype=torch.long)
    whole = segment.layout(token_ids, torch.ones_like(token_ids).bool()).token_closes
    for token, expected in zip(token_ids[0], whole, strict=True):
        closed = segment.closes(token[None], length)
        assert closed.item() == expected.item()
        length = (length + 1) * ~closed


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_token_belongs_to_one_sentence_and_padding_to_none(side):
    segment, token_ids = segmenter(), random_ids(3, 40)
    mask = torch.zeros(3, 40, dtype=torch.bool)
    for row, length in enumerate((40, 1, 23)):
        mask[row, slice(40 - length, 40) if side == "left" else slice(0, length)] = True
    layout = segment.layout(token_ids, mask)
    assert torch.equal(layout.token_index, mask.flatten().nonzero().squeeze(1))
    sizes = torch.bincount(layout.token_sentence)
    assert sizes.sum() == mask.sum() and sizes.max() <= 9 and sizes.min() >= 1
    assert torch.equal(layout.sentence_row[layout.token_sentence], layout.token_row)
    for sentence in range(len(sizes)):
        offsets = layout.token_offset[layout.token_sentence == sentence]
        assert torch.equal(offsets, torch.arange(len(offsets)))
        assert not layout.token_closes[layout.token_sentence == sentence][:-1].any()


def test_explicit_sentences_are_taken_and_cut_at_the_maximum_length():
    segment, token_ids = segmenter(max_sentence_length=4), random_ids(1, 9)
    sentence_ids = torch.tensor([[3, 3, 3, 3, 3, 3, 7, 7, 2]])
    layout = segment.layout(token_ids, torch.ones_like(token_ids).bool(), sentence_ids=sentence_ids)
    assert layout.token_sentence.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3]
    assert layout.sentence_closed.tolist() == [True, True, True, False]


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    words = ["a", ".", "!", ' "', '."', ",", "\n", "Mr", ".a", "?)", "。", "; "]
    if kind == "unigram":
        core = Tokenizer(models.Unigram([("<unk>", 0.0), *((word, -1.0) for word in words)], unk_id=0))
    elif kind == "character":
        words = sorted({character for word in words for character in word})
        core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(["<unk>", *words])}, "<unk>"))
        core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        merges = [] if kind == "byte" else [(".", '"')]
        vocab = {word: index for index, word in enumerate([*alphabet, *(a + b for a, b in merges)])}
        core = Tokenizer(models.BPE(vocab, merges))
        core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


@pytest.mark.parametrize("kind", ["bpe", "byte", "unigram", "character"])
def test_boundaries_are_found_in_any_tokenizer(kind):
    tokenizer = make_tokenizer(kind)
    found = boundary_tokens(tokenizer, unit="clause")
    boundary, clause = ({tokenizer.decode([i]) for i in found[name]} for name in found)
    assert {".", "!", "\n"} <= boundary and "," in clause
    assert not boundary & clause and not (boundary | clause) & {"a", ".a", "Mr", ' "'}
    if kind == "bpe":
        assert '."' in boundary
    if kind == "unigram":
        assert {'."', "?)", "。"} <= boundary and "; " in clause
    assert boundary_tokens(tokenizer)["clause_token_ids"] == []


def test_the_shared_models_tokenizer_has_boundaries(shared):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260K")
    texts = {tokenizer.decode([token]) for token in boundary_tokens(tokenizer)["boundary_token_ids"]}
    assert {".", "!", "?", "\n"} <= texts


def test_ends_of_sentences_that_are_overlooked_join_them():
    token_ids = random_ids(4, 60)
    mask = torch.ones_like(token_ids).bool()
    cut = segmenter(max_sentence_length=64)
    every = cut.layout(token_ids, mask)
    torch.manual_seed(0)
    half = cut.layout(token_ids, mask, boundary_dropout=0.5)
    assert 0.3 < half.token_closes.sum() / every.token_closes.sum() < 0.7
    assert not (half.token_closes & ~every.token_closes).any()
    assert len(cut.layout(token_ids, mask, boundary_dropout=1.0).sentence_row) == 4
