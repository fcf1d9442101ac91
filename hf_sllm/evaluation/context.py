"""What a model makes of the sentences before: how much they help, and whether a fact stated in one is kept.

Both measures score given continuations of given contexts. They do not know which kind of causal language model they
measure: with the same tokenizer and the same rule every model gets the same tokens.
"""

import math
import random
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_sllm.data import start_token_id
from hf_sllm.data.fact_words import ANIMALS, COLORS, NAMES, THINGS

from .continuations import continuation_nats
from .likelihood import default_window
from .sentences import SegmentedDocument, Sentence, segment_documents

# A figure over fewer targets would say little, unless fewer are asked for.
FEWEST_TARGETS = 50

# A filler sentence has so many words or more: a single word in quotes is hardly a sentence between.
FEWEST_WORDS = 3

# What is stated and asked about, and what it can be: each word fits each opening, and the words of a list are alike.
QUESTIONS = (
    ("The name of the dog was", NAMES),
    ("The color of the house was", COLORS),
    ("The thing in the box was a", THINGS),
    ("The animal in the garden was a", ANIMALS),
    ("The name of the teacher was", NAMES),
    ("The color of the boat was", COLORS),
    ("The gift from Grandma was a", THINGS),
    ("The animal on the farm was a", ANIMALS),
)


@dataclass(frozen=True)
class ContextUse:
    """How well sentences are predicted from more or fewer sentences before them.

    Attributes:
        sentences: How many sentences of context were given, the fewest first.
        bits_per_byte: With each of these: negative log2-likelihood of all targets over their UTF-8 bytes.
        standard_errors: Of these, over the targets.
        gains: Bits per byte saved against the fewest sentences.
        gain_standard_errors: Of these. The targets are the same, so a gain is known better than the figures it is the
            difference of.
        left_out: Numbers of sentences that were asked for, and that too few sentences have before them.
        targets: How many sentences were predicted, the same for every number of sentences of context.
        tokens, bytes: Of the targets.
        seconds: Wall time.
    """

    sentences: tuple[int, ...]
    bits_per_byte: tuple[float, ...]
    standard_errors: tuple[float, ...]
    gains: tuple[float, ...]
    gain_standard_errors: tuple[float, ...]
    left_out: tuple[int, ...]
    targets: int
    tokens: int
    bytes: int
    seconds: float


def context_use(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Mapping[str, Any]],
    rule: PreTrainedConfig,
    sentences: Sequence[int] = (0, 1, 2, 4, 8, 16),
    targets: int = 200,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> ContextUse:
    """Scores sentences of documents after the start token and so many of the sentences before them.

    Args:
        model: Any causal language model; load it in float32 for a figure that counts.
        tokenizer: The model's own, a fast one.
        documents: Rows with a `text`.
        rule: Says where sentences end: a config that `SentenceSegmenter` takes. A sentence of white space alone
            counts as context, and is no target.
        sentences: Numbers of sentences of context. One that fewer sentences have before them than are to be predicted
            (but 50 will do) is left out, and told.
        targets: How many sentences to predict, drawn from all that have the most sentences before them.
        batch_size: Rows at a time.
        seed: Of the drawing.
        progress: Whether to show a progress bar, on standard error.

    Raises:
        ValueError: If a number is out of range, the tokenizer is not a fast one, or too few sentences have even the
            fewest sentences before them.
    """
    begun = time.monotonic()
    counts = sorted(set(sentences))
    if not counts or counts[0] < 0:
        raise ValueError(f"`sentences` is {tuple(sentences)}: it must hold at least one number, and none below 0.")
    if targets < 2:
        raise ValueError(f"`targets` is {targets}: it must be at least 2.")
    found = [
        (document, index)
        for document in segment_documents(documents, tokenizer, rule)
        for index, sentence in enumerate(document.sentences)
        if document.text_of(sentence).strip()
    ]
    needed = min(targets, FEWEST_TARGETS)
    used = [count for count in counts if sum(index >= count for _, index in found) >= needed]
    if not used:
        raise ValueError(
            f"`documents` have fewer than {needed} sentences with {counts[0]} or more before them: give more "
            "documents, or lower `targets`."
        )
    eligible = [target for target in found if target[1] >= used[-1]]
    chosen = random.Random(seed).sample(eligible, min(targets, len(eligible)))

    start = start_token_id(tokenizer)
    pairs = [_pair(start, document, index, count) for count in used for document, index in chosen]
    nats = continuation_nats(model, tokenizer, pairs, batch_size, "Scoring with context", progress)
    bits = np.array(nats).reshape(len(used), len(chosen)) / math.log(2)
    sizes = np.array([len(document.text_of(document.sentences[index]).encode()) for document, index in chosen])
    figures = [_ratio(row, sizes) for row in bits]
    gains = [_ratio(bits[0] - row, sizes) for row in bits]
    return ContextUse(
        sentences=tuple(used),
        bits_per_byte=tuple(value for value, _ in figures),
        standard_errors=tuple(error for _, error in figures),
        gains=tuple(value for value, _ in gains),
        gain_standard_errors=tuple(error for _, error in gains),
        left_out=tuple(count for count in counts if count not in used),
        targets=len(chosen),
        tokens=sum(len(continuation) for _, continuation in pairs[: len(chosen)]),
        bytes=int(sizes.sum()),
        seconds=time.monotonic() - begun,
    )


def _pair(start: int, document: SegmentedDocument, index: int, count: int) -> tuple[list[int], list[int]]:
    """The start token and `count` sentences, and the sentence after them."""
    target: Sentence = document.sentences[index]
    begin = document.sentences[index - count].begin
    return [start, *document.ids[begin : target.begin]], document.ids[target.begin : target.end]


def _ratio(values: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Sum of values over sum of sizes, and its standard error by the usual linearisation."""
    ratio = values.sum() / sizes.sum()
    variance = (values - ratio * sizes).var(ddof=1) * len(values)
    return float(ratio), float(math.sqrt(variance) / sizes.sum())


# How many sentences stand between a fact and its question; the last one only where there is room for it.
NEAR, FAR = (0, 1, 2, 4, 8, 16), 64


@dataclass(frozen=True)
class Needle:
    """How often a fact is known some sentences after it was stated.

    Attributes:
        distances: How many sentences stood between the fact and the question.
        accuracy: At each distance, share of the trials in which the right answer was the likeliest candidate.
        standard_errors: Of these, over the questions.
        probability: At each distance, mean probability of the right answer among the candidates.
        chance: What a model without memory gets, in accuracy and in probability: exactly so.
        trials: At each distance.
        candidates: Answers to choose from.
        seconds: Wall time.
    """

    distances: tuple[int, ...]
    accuracy: tuple[float, ...]
    standard_errors: tuple[float, ...]
    probability: tuple[float, ...]
    chance: float
    trials: int
    candidates: int
    seconds: float


def needle(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Mapping[str, Any]],
    rule: PreTrainedConfig,
    distances: Sequence[int] | None = None,
    trials: int = 96,
    candidates: int = 4,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> Needle:
    """States a fact, goes on with sentences of the documents, and asks for the fact.

    "The name of the dog was Sam." is asked for, some sentences later, by "The name of the dog was": in the words in
    which it was stated, so that it takes memory and no understanding. What a model says is the candidate whose tokens
    are the likeliest together. Each question is put as many times as it has candidates, each of them stated once, with
    the same sentences between: whoever does not remember says the same each time, and is right once.

    Args:
        model: Any causal language model.
        tokenizer: The model's own, a fast one.
        documents: Rows with a `text`, for the sentences between. They hold none of the candidates.
        rule: Says where the sentences of documents end: a config that `SentenceSegmenter` takes.
        distances: How many sentences stand between; by default 0, 1, 2, 4, 8, 16, and 64 where the documents have
            four times as many and the model can read them at once.
        trials: At each distance: a multiple of `candidates`, two questions or more.
        candidates: Answers to choose from, 2 to 8.
        batch_size: Rows at a time.
        seed: Of the candidates and of the sentences between.
        progress: Whether to show a progress bar, on standard error.

    Raises:
        ValueError: If a number is out of range, the tokenizer is not a fast one, or the documents have too few
            sentences without the candidates.
    """
    begun = time.monotonic()
    if not 2 <= candidates <= len(NAMES):
        raise ValueError(f"`candidates` is {candidates}: it must be from 2 to {len(NAMES)}.")
    if trials % candidates or trials < 2 * candidates:
        raise ValueError(
            f"`trials` is {trials}: it must be a multiple of `candidates`, {candidates}, and at least twice as much, "
            "for each of them to be right equally often."
        )
    if distances is not None and (not distances or min(distances) < 0):
        raise ValueError(f"`distances` is {tuple(distances)}: it must hold at least one number, and none below 0.")
    fillers = [_filler_sentences(document, rule) for document in segment_documents(documents, tokenizer, rule)]
    if distances is None:
        distances = (*NEAR, FAR) if _has_room(fillers, FAR, model, tokenizer) else NEAR
    questions = trials // candidates
    draw = random.Random(seed)
    pairs: list[tuple[list[int], list[int]]] = []
    for question in range(questions):
        opening, words = QUESTIONS[question % len(QUESTIONS)]
        answers = draw.sample(words, candidates)
        between = _between(fillers, answers, max(distances), draw)
        for distance in distances:
            for stated in answers:
                context = " ".join([f"{opening} {stated}.", *between[len(between) - distance :], opening])
                pairs += _answer_pairs(tokenizer, context, [f" {answer}" for answer in answers])

    nats = continuation_nats(model, tokenizer, pairs, batch_size, "Asking for facts", progress)
    # In the order of the loops: question, distance, what was stated, what is scored.
    scores = -torch.tensor(nats, dtype=torch.float64).view(questions, len(distances), candidates, candidates)
    # Of equally likely candidates the first counts as said: it is the right one once.
    right = scores.argmax(-1) == torch.arange(candidates)
    by_question = right.double().mean(-1)
    return Needle(
        distances=tuple(distances),
        accuracy=tuple(by_question.mean(0).tolist()),
        standard_errors=tuple((by_question.std(0) / math.sqrt(questions)).tolist()),
        probability=tuple(scores.softmax(-1).diagonal(dim1=-2, dim2=-1).mean((0, 2)).tolist()),
        chance=1 / candidates,
        trials=trials,
        candidates=candidates,
        seconds=time.monotonic() - begun,
    )


def _filler_sentences(document: SegmentedDocument, rule: PreTrainedConfig) -> list[str]:
    """The sentences of a document that are whole and of a few words."""
    texts = [
        document.text_of(sentence).strip()
        for sentence in document.sentences
        if sentence.closed and sentence.end - sentence.begin < rule.max_sentence_length
    ]
    return [text for text in texts if len(text.split()) >= FEWEST_WORDS]


def _has_room(
    fillers: list[list[str]], count: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> bool:
    """Whether there are enough sentences to put so many between, and the model can read them at once."""
    sentences = [sentence for document in fillers for sentence in document]
    if len(sentences) < 4 * count:
        return False
    lengths = sorted(len(ids) for ids in tokenizer(sentences, add_special_tokens=False)["input_ids"])
    return count * lengths[len(lengths) * 3 // 4] < default_window(model)  # many may be longer than the mean


def _between(fillers: list[list[str]], words: list[str], count: int, draw: random.Random) -> list[str]:
    """So many sentences without any of the words: a random document's, then those of the documents after it."""
    if not count:
        return []
    word = re.compile(rf"\b({'|'.join(words)})\b", re.IGNORECASE)
    first = draw.randrange(len(fillers))
    found: list[str] = []
    for document in [*fillers[first:], *fillers[:first]]:
        found += [sentence for sentence in document if not word.search(sentence)]
        if len(found) >= count:
            return found[:count]
    raise ValueError(
        f"`documents` have {len(found)} sentences of {FEWEST_WORDS} or more words without {', '.join(words)}, and the "
        f"largest of `distances` is {count}: give more documents, or smaller distances."
    )


def _answer_pairs(
    tokenizer: PreTrainedTokenizerBase, context: str, answers: list[str]
) -> list[tuple[list[int], list[int]]]:
    """Token ids of the context, with the start token, and of each answer after it.

    Each text is tokenised as a whole, as it would be read. What all of them and the context alone begin with is the
    context; the rest of each is its answer, even where a tokenizer joins the context's end with it.
    """
    alone, *wholes = tokenizer([context, *(context + answer for answer in answers)], add_special_tokens=False)[
        "input_ids"
    ]
    length = len(commonprefix([alone, *wholes]))
    return [([start_token_id(tokenizer), *whole[:length]], whole[length:]) for whole in wholes]


__all__ = ["ContextUse", "Needle", "context_use", "needle"]
