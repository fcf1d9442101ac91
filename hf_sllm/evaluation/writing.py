"""What a model writes: how like the true texts it is, and how well samples of it agree with them.

Nothing here asks for a likelihood, only for samples, so that it also measures models that have none. It does not know
which kind of causal language model writes.
"""

import math
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_sllm.data import document_ids, start_token_id

from .likelihood import default_window
from .loop import evaluation_mode, in_batches
from .sentences import segment_documents, sentences_of

# Tokens in a row that count as a repetition.
REPEATED = 4


@dataclass(frozen=True)
class TextFigures:
    """Figures of some texts. One is `None` where there is nothing to count.

    Attributes:
        distinct_1, distinct_2, distinct_3: Share of different ones among the 1-, 2- and 3-grams of tokens of all texts
            (Li et al., arXiv 1510.03055, there over the tokens).
        repetition: Share of the 4-grams of tokens that occurred before in the same text.
        sentence_tokens, sentence_characters: Mean length of the closed sentences that are not white space alone.
        ended: Share of the texts that came to their end within the given number of tokens.
        tokens: In all, ends of text not counted.
    """

    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None
    repetition: float | None
    sentence_tokens: float | None
    sentence_characters: float | None
    ended: float
    tokens: int


@dataclass(frozen=True)
class Writing:
    """What was written after the beginnings of documents, beside what the documents go on with.

    Attributes:
        reference: The documents' own continuations, as many tokens at most.
        generated: The model's.
        prompts: How many documents were continued.
        compared_tokens: How many tokens of either side distinct n-grams and repetitions are counted in. Both depend on
            how long texts are, so of a document's two continuations the longer one is cut to the other's length.
        seconds: Wall time.
    """

    reference: TextFigures
    generated: TextFigures
    prompts: int
    compared_tokens: int
    seconds: float


def writing(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Mapping[str, Any]],
    rule: PreTrainedConfig,
    prompts: int = 50,
    prompt_sentences: int = 2,
    new_tokens: int = 128,
    temperature: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Writing:
    """Continues documents by sampling from all tokens.

    Args:
        model: Any causal language model that generates.
        tokenizer: The model's own, a fast one.
        documents: Rows with a `text`, held out.
        rule: Says where sentences end: a config that `SentenceSegmenter` takes.
        prompts: How many of the documents that are long enough to continue, drawn at random; all if they are fewer.
        prompt_sentences: How many sentences of each the model is given, after the start token.
        new_tokens: The longest continuation.
        temperature: What logits are divided by.
        batch_size: Texts at a time.
        seed: Of the drawing and of the sampling.
        progress: Whether to show a progress bar, on standard error.

    Raises:
        ValueError: If a number is out of range, the tokenizer is not a fast one, or no document is long enough.
    """
    begun = time.monotonic()
    for name, value in {"prompts": prompts, "prompt_sentences": prompt_sentences, "new_tokens": new_tokens}.items():
        if value < 1:
            raise ValueError(f"`{name}` is {value}: it must be at least 1.")
    found = segment_documents(documents, tokenizer, rule)
    found = [document for document in found if len(document.sentences) > prompt_sentences]
    if not found:
        raise ValueError(
            f"no document has more than {prompt_sentences} sentences: give others, or lower `prompt_sentences`."
        )
    found = random.Random(seed).sample(found, min(prompts, len(found)))
    start, end = start_token_id(tokenizer), tokenizer.eos_token_id
    cuts = [document.sentences[prompt_sentences].begin for document in found]
    given = [[start, *document.ids[:cut]] for document, cut in zip(found, cuts, strict=True)]
    references = [[*document.ids[cut:], end][:new_tokens] for document, cut in zip(found, cuts, strict=True)]
    generated = [
        texts[0]
        for texts in _sample(
            model, tokenizer, given, new_tokens, temperature, 1, batch_size, seed, "Writing", progress
        )
    ]
    lengths = [
        min(len(_without_end(text, end)) for text in texts) for texts in zip(references, generated, strict=True)
    ]
    return Writing(
        reference=_figures(references, lengths, tokenizer, rule),
        generated=_figures(generated, lengths, tokenizer, rule),
        prompts=len(found),
        compared_tokens=sum(lengths),
        seconds=time.monotonic() - begun,
    )


def _figures(
    texts: list[list[int]], lengths: list[int], tokenizer: PreTrainedTokenizerBase, rule: PreTrainedConfig
) -> TextFigures:
    """Figures of token ids that begin where a sentence begins; n-grams are counted in the first `lengths` of them."""
    end = tokenizer.eos_token_id
    ended = [text[-1:] == [end] for text in texts]
    texts = [_without_end(text, end) for text in texts]
    cut = [text[:length] for text, length in zip(texts, lengths, strict=True)]
    repeats = [_ngrams(text, REPEATED) for text in cut]
    sentences = [
        text[sentence.begin : sentence.end]
        for text in texts
        for sentence in sentences_of(text, rule)
        if sentence.closed
    ]
    decoded = [str(tokenizer.decode(sentence, clean_up_tokenization_spaces=False)) for sentence in sentences]
    sizes = [(len(ids), len(text)) for ids, text in zip(sentences, decoded, strict=True) if text.strip()]
    return TextFigures(
        distinct_1=_distinct(cut, 1),
        distinct_2=_distinct(cut, 2),
        distinct_3=_distinct(cut, 3),
        repetition=_share(sum(len(grams) - len(set(grams)) for grams in repeats), sum(map(len, repeats))),
        sentence_tokens=_share(sum(tokens for tokens, _ in sizes), len(sizes)),
        sentence_characters=_share(sum(characters for _, characters in sizes), len(sizes)),
        ended=sum(ended) / len(texts),
        tokens=sum(map(len, texts)),
    )


def _distinct(texts: list[list[int]], n: int) -> float | None:
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return _share(len(set(grams)), len(grams))


def _without_end(text: list[int], end: int) -> list[int]:
    return text[:-1] if text[-1:] == [end] else text


def _ngrams(text: list[int], n: int) -> list[tuple[int, ...]]:
    return list(zip(*(text[offset:] for offset in range(n)), strict=False))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


@dataclass(frozen=True)
class BrierLm:
    """How well two samples of the next tokens agree with the true ones, and not with each other.

    Attributes:
        block_sizes: How many next tokens.
        brier: For each, the mean over the prefixes: 1 for who always knows them, 1 / V for who takes each of V blocks
            for equally likely, below 0 for who is sure of the wrong ones.
        standard_errors: Of these, over the prefixes.
        brier_lm: 100 times the geometric mean of `brier`. `None` where one of these is not positive, be it by chance:
            then there is no such mean, and more prefixes may help.
        brier_lm_standard_error: Of it, to first order.
        prefixes: How many.
        seconds: Wall time.
    """

    block_sizes: tuple[int, ...]
    brier: tuple[float, ...]
    standard_errors: tuple[float, ...]
    brier_lm: float | None
    brier_lm_standard_error: float | None
    prefixes: int
    seconds: float


def brier_lm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Mapping[str, Any]],
    block_sizes: Sequence[int] = (1, 2, 3, 4),
    prefixes: int = 600,
    max_prefix: int = 256,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> BrierLm:
    """Measures by samples alone how calibrated and how sharp a model is.

    For true next tokens y and two independent samples x1, x2, `1{x1 = y} + 1{x2 = y} - 1{x1 = x2}` has the mean
    `2 P(y) - sum_x P(x)^2`, a Brier score: no other distribution scores higher on average than the true one. For
    blocks of 1 to 4 tokens this is the BrierLM of "Continuous Autoregressive Language Models" (Shao et al., arXiv
    2510.27688). The authors' code has 0 where the product of the scores is negative.

    Args:
        model: Any causal language model that generates.
        tokenizer: The model's own.
        documents: Rows with a `text`, held out.
        block_sizes: How many next tokens to compare. The longest block is sampled, and shorter ones are what it begins
            with.
        prefixes: How many places in the documents, drawn from all that leave room for the longest block before the
            document's end, which may be part of the block; all if there are fewer. With the same tokenizer every model
            gets the same ones.
        max_prefix: The longest prefix in tokens, the start token included: places further on are not drawn.
        batch_size: Prefixes at a time; each is sampled after twice.
        seed: Of the drawing and of the sampling.
        progress: Whether to show a progress bar, on standard error.

    Raises:
        ValueError: If a number is out of range, or the documents have fewer than two such places.
    """
    begun = time.monotonic()
    if not block_sizes or min(block_sizes) < 1:
        raise ValueError(f"`block_sizes` is {tuple(block_sizes)}: it must hold at least one number, and none below 1.")
    for name, value, least in (("prefixes", prefixes, 2), ("max_prefix", max_prefix, 1)):
        if value < least:
            raise ValueError(f"`{name}` is {value}: it must be at least {least}.")
    longest = max(block_sizes)
    rows = document_ids([document["text"] for document in documents], tokenizer)
    places = [(row, cut) for row in rows for cut in range(1, min(len(row) - longest, max_prefix) + 1)]
    if len(places) < 2:
        raise ValueError(
            f"`documents` have fewer than two places with {longest} tokens after them: give more, or smaller "
            "`block_sizes`."
        )
    places = random.Random(seed).sample(places, min(prefixes, len(places)))
    given = [row[:cut] for row, cut in places]
    samples = _sample(model, tokenizer, given, longest, 1.0, 2, batch_size, seed, "Sampling", progress)
    # (prefixes, sizes)
    scores = torch.tensor(
        [
            [_brier(row[cut : cut + size], first[:size], second[:size]) for size in block_sizes]
            for (row, cut), (first, second) in zip(places, samples, strict=True)
        ],
        dtype=torch.float64,
    )
    means = scores.mean(0)
    mean = error = None
    if (means > 0).all():
        mean = 100 * means.log().mean().exp().item()
        # A small relative change of the geometric mean is the mean of the relative changes.
        error = mean * _standard_error((scores / means).mean(1)).item()
    return BrierLm(
        block_sizes=tuple(block_sizes),
        brier=tuple(means.tolist()),
        standard_errors=tuple(_standard_error(scores).tolist()),
        brier_lm=mean,
        brier_lm_standard_error=error,
        prefixes=len(places),
        seconds=time.monotonic() - begun,
    )


def _brier(truth: list[int], first: list[int], second: list[int]) -> int:
    return (first == truth) + (second == truth) - (first == second)


def _standard_error(values: torch.Tensor) -> torch.Tensor:
    """Of the mean over the first dimension."""
    return values.std(0) / math.sqrt(len(values))


@torch.no_grad()
def _sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    new_tokens: int,
    temperature: float,
    samples: int,
    batch_size: int,
    seed: int,
    title: str,
    progress: bool,
) -> list[list[list[int]]]:
    """Independent samples of what follows each prompt: `new_tokens` tokens, or as many as end with the end of text."""
    end = tokenizer.eos_token_id
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    settings = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=new_tokens,
        num_return_sequences=samples,
        use_cache=True,
        bos_token_id=start_token_id(tokenizer),
        eos_token_id=end,
        pad_token_id=pad,
    )
    # Prompts of like lengths together, so that little is padding.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    longest = len(prompts[order[0]]) + new_tokens
    if longest > default_window(model):
        raise ValueError(
            f"a prompt and what is to be written after it have {longest} tokens, and the model reads "
            f"{default_window(model)} at once (`max_position_embeddings`): give shorter prompts, or write less."
        )
    found: list[list[list[int]]] = [[] for _ in prompts]
    # What the model's own settings add, penalties for instance, would be another distribution than the model's.
    own_settings, model.generation_config = model.generation_config, settings
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with evaluation_mode(model), torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            for batch in in_batches(order, batch_size, title, progress):
                length = len(prompts[batch[0]])
                padding = [length - len(prompts[index]) for index in batch]
                rows = [[pad] * size + prompts[index] for size, index in zip(padding, batch, strict=True)]
                mask = torch.arange(length) >= torch.tensor(padding)[:, None]
                written = model.generate(  # type: ignore[operator]
                    input_ids=torch.tensor(rows, device=model.device),
                    attention_mask=mask.long().to(model.device),
                )[:, length:].tolist()
                for row, text in enumerate(written):
                    if end in text:
                        text = text[: text.index(end) + 1]
                    found[batch[row // samples]].append(text)
    finally:
        model.generation_config = own_settings
    return found


__all__ = ["BrierLm", "TextFigures", "Writing", "brier_lm", "writing"]
