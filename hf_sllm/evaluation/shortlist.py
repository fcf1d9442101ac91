"""What a shortlist of tokens leaves out of real text."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_sllm.data.blocks import cut_at_sentences, document_ids
from hf_sllm.modeling.token_shortlist import guessed_scores, token_scores

from .loop import evaluation_mode, in_batches, padded

# Sentences at a time for whose tokens the whole vocabulary is ranked.
SENTENCES_AT_ONCE = 16
# Lists are fitted to one block in so many; the others are looked at.
FIT_EVERY = 4


@dataclass(frozen=True)
class Lists:
    """What lists hold that are chosen in one way.

    Attributes:
        way: "token", a list for each token, by `fit_shortlist`; "sentence", one for each sentence as it begins, of a
            model with a `bag_of_words_weight`; or "best", what the whole LM head finds most likely for each token: a
            list that the model chooses cannot be expected to hold more.
        coverage: For each size, the share of the text's tokens that are on their list.
        mass: The mean probability that the whole LM head gives to what is on the list.
        same: The share of tokens where greedy search takes the same token as from the whole head.
        nats: Mean cross-entropy per token. None where what is not on the list has no probability.
    """

    way: str
    coverage: tuple[float, ...]
    mass: tuple[float, ...]
    same: tuple[float, ...]
    nats: tuple[float, ...] | None


@dataclass(frozen=True)
class ShortlistCoverage:
    """How much of held-out text can be written from lists.

    Attributes:
        sizes: Tokens on a list.
        lists: For each way of choosing them.
        nats: Mean cross-entropy per token of the whole LM head.
        tokens, sentences: How many were looked at: not the first sentence of a text, nor the blocks of the fit.
        seconds: Wall time.
    """

    sizes: tuple[int, ...]
    lists: tuple[Lists, ...]
    nats: float
    tokens: int
    sentences: int
    seconds: float


@torch.no_grad()
def shortlist_coverage(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Mapping[str, Any]],
    sizes: Sequence[int] = (128, 512, 2048, 4096, 8192),
    batch_size: int = 8,
    block_size: int = 512,
    progress: bool = True,
) -> ShortlistCoverage:
    """Chooses lists as generation does, and looks whether held-out text is on them.

    Args:
        model: An SLLM. It is fitted to a few of the blocks; a fit that it had is put back.
        tokenizer: Its own.
        documents: Rows with a `text`, held out.
        sizes: Those that are not below the vocabulary's are left out.
        batch_size: Blocks at a time, and the most that are fitted to.
        block_size: Longest block in tokens; a longer document is cut at sentences.
        progress: Whether to show a progress bar, on standard error.

    Raises:
        ValueError: If there are fewer than two blocks, or none of those looked at has two sentences.
    """
    begun = time.monotonic()
    config: Any = model.config
    sizes = sorted(size for size in sizes if size < config.vocab_size)
    rows = document_ids([document["text"] for document in documents], tokenizer)
    blocks = [block for row in rows for block in cut_at_sentences(row, config, block_size)]
    if len(blocks) < 2:
        raise ValueError("`documents` make one block: lists are fitted to some and looked up in others. Pass more.")
    blocks.sort(key=len, reverse=True)
    fit = blocks[::FIT_EVERY][:batch_size]
    blocks = [block for number, block in enumerate(blocks) if number % FIT_EVERY or number >= FIT_EVERY * batch_size]
    found: dict[str, torch.Tensor] = {}  # (4, sizes): tokens on the list, its probability, the same token, nats
    tokens = sentences = 0
    whole = 0.0
    had = model.shortlist_fit
    with evaluation_mode(model):
        try:
            model.fit_shortlist(*padded(fit, tokenizer, model.device))  # type: ignore[operator]
            for batch in in_batches(blocks, batch_size, "Shortlisting", progress):
                sums, nats, seen = _look_up(model, *padded(batch, tokenizer, model.device), sizes)
                found = {way: found.get(way, 0) + sum_ for way, sum_ in sums.items()}
                whole += nats
                tokens += seen[0]
                sentences += seen[1]
        finally:
            model.shortlist_fit = had
    if tokens == 0:
        raise ValueError("`documents` have no second sentence: there is nothing to look up.")
    means = {way: map(tuple, (sums / tokens).tolist()) for way, sums in found.items()}
    lists = tuple(Lists(way, *rows) for way, rows in means.items())
    lists = tuple(each if each.way == "token" else replace(each, nats=None) for each in lists)
    return ShortlistCoverage(tuple(sizes), lists, whole / tokens, tokens, sentences, time.monotonic() - begun)


def _look_up(
    model: Any, token_ids: torch.Tensor, mask: torch.Tensor, sizes: Sequence[int]
) -> tuple[dict[str, torch.Tensor], float, tuple[int, int]]:
    """Of one batch: for each way the sums over its tokens, `(4, sizes)`; the whole head's nats; how many tokens and
    sentences."""
    states = model.model(token_ids, mask).last_hidden_state.flatten(0, 1)
    layout = model.model.segmenter.layout(token_ids, mask.bool())
    ids = token_ids.flatten()[layout.token_index]
    bounds = layout.token_sentence.diff(prepend=layout.token_sentence.new_tensor([-1])).nonzero().squeeze(1)
    follows = layout.token_rank[bounds] > 0
    lengths = torch.bincount(layout.token_sentence)
    chosen = follows.nonzero().squeeze(1)
    sums: dict[str, torch.Tensor] = {}
    count, whole = 0, 0.0
    last = [size - 1 for size in sizes]
    for part in chosen.split(SENTENCES_AT_ONCE):
        place = torch.cat([torch.arange(int(bounds[s]), int(bounds[s] + lengths[s])) for s in part.tolist()]).to(ids)
        targets = ids[place]
        before = states[layout.token_index[place - 1]]  # the state before each token
        logits = model.compute_logits(before).float()
        best, probabilities = logits.argmax(-1), logits.softmax(-1)
        whole += F.cross_entropy(logits, targets, reduction="sum").item()
        ways = {"best": logits, "token": guessed_scores(model, before)}
        if model.config.bag_of_words_weight > 0:
            starts = states[layout.token_index[bounds[part] - 1]]
            ways["sentence"] = token_scores(model, starts).repeat_interleave(lengths[part], 0)
        for way, scores in ways.items():
            order = scores.topk(max(sizes), -1).indices
            on_list = (order == targets[:, None]).cumsum(1)[:, last]
            mass = probabilities.gather(1, order).cumsum(1)[:, last]
            same = (order == best[:, None]).cumsum(1)[:, last]
            nats = torch.zeros_like(mass)
            if way == "token":
                guess = model.adjust_logits(scores).float()
                for column, size in enumerate(sizes):
                    listed = order[:, :size]
                    written = guess.scatter(1, listed, logits.gather(1, listed))  # as `fitted_logits`
                    same[:, column] = written.argmax(-1) == best
                    nats[:, column] = F.cross_entropy(written, targets, reduction="none")
            each = torch.stack([values.double().sum(0).cpu() for values in (on_list, mass, same, nats)])
            sums[way] = sums.get(way, 0) + each
        count += len(place)
    return sums, whole, (count, len(chosen))


__all__ = ["Lists", "ShortlistCoverage", "shortlist_coverage"]
