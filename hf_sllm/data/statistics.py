"""How long the sentences of documents are, and what a maximum length cuts."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from hf_sllm.modeling import SentenceSegmenter, boundary_tokens

from .blocks import start_token_id

# Maximum lengths to choose from.
CANDIDATES = (16, 32, 64, 128)

# Characters that are looked at together: many, to be quick, but not all of them.
CHARACTERS_AT_A_TIME = 500_000


@dataclass(frozen=True)
class Distribution:
    """Of lengths: half of them are at most `median`, 90 % at most `p90`, 99 % at most `p99`."""

    mean: float
    median: int
    p90: int
    p99: int
    max: int


@dataclass(frozen=True)
class Cut:
    """What one maximum length does.

    Attributes:
        max_sentence_length: In tokens.
        sentences: How many there are after cutting.
        tokens_per_sentence: Their mean: how many tokens one position of the backbone stands for.
        cut_sentences: Share of the natural sentences that are longer, and so are cut.
        cut_tokens: Share of the tokens that are in these.
    """

    max_sentence_length: int
    sentences: int
    tokens_per_sentence: float
    cut_sentences: float
    cut_tokens: float


@dataclass(frozen=True)
class SentenceStatistics:
    """Of natural sentences: those that end at boundary tokens and ends of text alone, however long they are.

    Attributes:
        documents: How many.
        bytes: Of their texts, in UTF-8.
        tokens: As a model reads them: with the start token and the end of text of each document.
        sentences: Natural ones. The end of text is one of its own where what precedes it is closed.
        single_tokens: How many of them are one token: ends of text, line breaks after a full stop.
        tokens_per_sentence: Natural lengths in tokens.
        bytes_per_sentence: Natural lengths in bytes.
        max_sentence_length: The one asked about.
        cuts: What it and the candidates do, the shortest first.
        lengths: How many natural sentences have each length in tokens.
    """

    documents: int
    bytes: int
    tokens: int
    sentences: int
    single_tokens: int
    tokens_per_sentence: Distribution
    bytes_per_sentence: Distribution
    max_sentence_length: int
    cuts: list[Cut]
    lengths: dict[int, int]


def sentence_rule(
    tokenizer: PreTrainedTokenizerBase,
    unit: str = "sentence",
    max_sentence_length: int = 64,
    min_sentence_length: int = 2,
    min_clause_length: int = 8,
) -> PreTrainedConfig:
    """What a model's config says about where sentences end, for a tokenizer without a model."""
    lengths = {
        "max_sentence_length": max_sentence_length,
        "min_sentence_length": min_sentence_length,
        "min_clause_length": min_clause_length,
    }
    return PreTrainedConfig.from_dict(
        {**boundary_tokens(tokenizer, unit), **lengths, "eos_token_id": tokenizer.eos_token_id}
    )


def sentence_statistics(
    documents: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    candidates: Sequence[int] = CANDIDATES,
    progress: bool = True,
) -> SentenceStatistics:
    """Measures the sentences of documents.

    Args:
        documents: Rows with a `text`: a `datasets.Dataset`, a stream, or a list of dicts.
        tokenizer: A fast one, which knows where in the text each token is.
        config: Says where sentences end: a model's config, or what `sentence_rule` returns.
        candidates: Further maximum lengths to look at.
        progress: Whether to show a progress bar, on standard error.

    Raises:
        ValueError: If there are no documents, a maximum length is below 1, or the tokenizer is not a fast one, or has
            no end of text that ends a sentence.
    """
    maxima = sorted({config.max_sentence_length, *candidates})
    if maxima[0] < 1:
        raise ValueError(f"`max_sentence_length` is {maxima[0]}: it must be at least 1.")
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} does not tell where in a text its tokens are: use a fast one.")
    start_token_id(tokenizer)
    if SentenceSegmenter(config).closing_strength(torch.tensor(tokenizer.eos_token_id)) != 3:
        raise ValueError(
            f"`eos_token_id` is {config.eos_token_id}: it must hold {tokenizer.eos_token_id}, with which the "
            "tokenizer ends a text."
        )

    count = 0
    token_lengths: Counter[int] = Counter()
    byte_lengths: Counter[int] = Counter()
    sentences: Counter[int] = Counter()
    shown = track(documents, "Counting", console=Console(stderr=True), disable=not progress, transient=True)
    for texts in _batches(document["text"] for document in shown):
        count += len(texts)
        ids, bytes_before_end = ids_and_bytes(texts, tokenizer)
        lengths = _sentence_lengths(ids, config, len(ids))
        _count(token_lengths, lengths)
        _count(byte_lengths, np.diff(bytes_before_end[lengths.cumsum() - 1], prepend=0))
        sentences.update({maximum: len(_sentence_lengths(ids, config, maximum)) for maximum in maxima})
    if not count:
        raise ValueError("there are no documents to measure.")

    tokens = sum(length * number for length, number in token_lengths.items())

    def cut(maximum: int) -> Cut:
        longer = {length: number for length, number in token_lengths.items() if length > maximum}
        return Cut(
            max_sentence_length=maximum,
            sentences=sentences[maximum],
            tokens_per_sentence=tokens / sentences[maximum],
            cut_sentences=sum(longer.values()) / token_lengths.total(),
            cut_tokens=sum(length * number for length, number in longer.items()) / tokens,
        )

    return SentenceStatistics(
        documents=count,
        bytes=sum(length * number for length, number in byte_lengths.items()),
        tokens=tokens,
        sentences=token_lengths.total(),
        single_tokens=token_lengths[1],
        tokens_per_sentence=_distribution(token_lengths),
        bytes_per_sentence=_distribution(byte_lengths),
        max_sentence_length=config.max_sentence_length,
        cuts=[cut(maximum) for maximum in maxima],
        lengths=dict(sorted(token_lengths.items())),
    )


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts of about as many characters together as are looked at together."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= CHARACTERS_AT_A_TIME:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def ids_and_bytes(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """Texts end to end, as `document_ids` makes token ids of them.

    Returns:
        `(tokens,)` the ids, and `(tokens,)` how many bytes of the texts there are up to each token's end.
    """
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    start, end = start_token_id(tokenizer), tokenizer.eos_token_id
    ids: list[int] = []
    characters: list[int] = []
    begin = 0
    for text, text_ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        ids += [start, *text_ids, end]
        characters += [begin, *(begin + last for _, last in offsets), begin + len(text)]
        begin += len(text)
    code_points = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
    sizes = 1 + sum((code_points >= first).astype(np.int64) for first in (0x80, 0x800, 0x10000))
    return np.array(ids), np.concatenate([[0], np.cumsum(sizes)])[characters]


def _sentence_lengths(ids: np.ndarray, config: PreTrainedConfig, max_sentence_length: int) -> np.ndarray:
    """`(sentences,)` the length of each sentence, in tokens. An end of text parts documents as it parts sentences."""
    config = copy.copy(config)
    config.max_sentence_length = max_sentence_length
    token_ids = torch.from_numpy(ids)[None]
    layout = SentenceSegmenter(config).layout(token_ids, torch.ones_like(token_ids, dtype=torch.bool))
    return torch.bincount(layout.token_sentence).numpy()


def _count(counter: Counter[int], lengths: np.ndarray) -> None:
    values, numbers = np.unique(lengths, return_counts=True)
    counter.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))


def _distribution(lengths: Counter[int]) -> Distribution:
    values, numbers = np.array(sorted(lengths.items())).T
    up_to = np.cumsum(numbers)

    def quantile(share: float) -> int:
        return int(values[np.searchsorted(up_to, share * up_to[-1])])

    mean = float((values * numbers).sum() / up_to[-1])
    return Distribution(mean, quantile(0.5), quantile(0.9), quantile(0.99), int(values[-1]))
