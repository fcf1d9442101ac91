"""What a shortlist of tokens leaves out of real text."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_sllm.data.blocks import BlockCollator, cut_at_sentences, document_ids
from hf_sllm.modeling.shortlist_sllm import token_scores

# Sentences at a time for which all tokens of the vocabulary are ranked.
SENTENCES_AT_ONCE = 64


@dataclass(frozen=True)
class ShortlistCoverage:
    """How much of held-out text can be written from lists that are chosen as each sentence begins.

    Attributes:
        sizes: Tokens on a list.
        coverage: For each size, the share of the text's tokens that are on their sentence's list.
        mass: For each size, the mean probability that the whole LM head gives to what is on the list.
        tokens, sentences: How many were looked at: not the first sentence of a text, which is written without a list.
        seconds: Wall time.
    """

    sizes: tuple[int, ...]
    coverage: tuple[float, ...]
    mass: tuple[float, ...]
    tokens: int
    sentences: int
    seconds: float


@torch.no_grad()
def shortlist_coverage(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Mapping[str, Any]],
    sizes: Sequence[int] = (128, 256, 512, 1024, 2048, 4096),
    batch_size: int = 8,
    block_size: int = 512,
    progress: bool = True,
) -> ShortlistCoverage:
    """Chooses a list for every sentence, as generation does, and looks whether the sentence is on it.

    Args:
        model: An SLLM with a `bag_of_words_weight` above 0.
        tokenizer: Its own.
        documents: Rows with a `text`, held out.
        sizes: Those above the vocabulary's are left out.
        batch_size: Blocks at a time.
        block_size: Longest block in tokens; a longer document is cut at sentences.
        progress: Whether to show a progress bar, on standard error.

    Raises:
        ValueError: If the model has no shortlist head, or no document has two sentences.
    """
    begun = time.monotonic()
    config: Any = model.config
    if getattr(config, "bag_of_words_weight", 0) == 0:
        raise ValueError(
            "`bag_of_words_weight` of this model is 0: it chooses no shortlist. Train an SLLM with a weight above 0."
        )
    sizes = sorted(size for size in sizes if size < config.vocab_size)
    rows = document_ids([document["text"] for document in documents], tokenizer)
    blocks = [block for row in rows for block in cut_at_sentences(row, config, block_size)]
    blocks.sort(key=len, reverse=True)
    batches = [blocks[first : first + batch_size] for first in range(0, len(blocks), batch_size)]
    collate = BlockCollator(tokenizer.eos_token_id)
    was_training = model.training
    model.eval()
    found = torch.zeros(2, len(sizes), dtype=torch.float64)  # tokens on the list, probability of the list
    tokens = sentences = 0
    for batch in track(batches, "Shortlisting", console=Console(stderr=True), disable=not progress, transient=True):
        inputs = {
            name: value.to(model.device) for name, value in collate([{"input_ids": row} for row in batch]).items()
        }
        on_list, mass, seen = _look_up(model, inputs["input_ids"], inputs["attention_mask"].bool(), sizes)
        found += torch.stack([on_list, mass])
        tokens += seen[0]
        sentences += seen[1]
    model.train(was_training)
    if tokens == 0:
        raise ValueError("`documents` have no second sentence: there is nothing to look up.")
    coverage, mass = (found / tokens).tolist()
    seconds = time.monotonic() - begun
    return ShortlistCoverage(tuple(sizes), tuple(coverage), tuple(mass), tokens, sentences, seconds)


def _look_up(
    model: Any, token_ids: torch.Tensor, mask: torch.Tensor, sizes: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
    """Of one batch: for each size tokens on their list and the list's probability, summed; tokens and sentences."""
    states = model.model(token_ids, mask).last_hidden_state.flatten(0, 1)
    layout = model.model.segmenter.layout(token_ids, mask)
    ids = token_ids.flatten()[layout.token_index]
    bounds = layout.token_sentence.diff(prepend=layout.token_sentence.new_tensor([-1])).nonzero().squeeze(1)
    follows = layout.token_rank[bounds] > 0
    lengths = torch.bincount(layout.token_sentence)
    on_list, mass = torch.zeros(2, len(sizes), dtype=torch.float64)
    chosen = follows.nonzero().squeeze(1)
    count = 0
    for part in chosen.split(SENTENCES_AT_ONCE):
        starts = states[layout.token_index[bounds[part] - 1]]
        order = token_scores(model, starts).argsort(-1, descending=True)  # (sentences, vocab)
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).to(order).expand_as(order))
        place = torch.cat([torch.arange(int(bounds[s]), int(bounds[s] + lengths[s])) for s in part.tolist()]).to(ids)
        group = torch.repeat_interleave(lengths[part])
        # The state before each token, and what it gives to the tokens of the list.
        before = states[layout.token_index[place - 1]]
        probability = F.softmax(model.compute_logits(before).float(), -1).gather(1, order[group]).cumsum(1)
        for number, size in enumerate(sizes):
            on_list[number] += int((rank[group, ids[place]] < size).sum())
            mass[number] += probability[:, size - 1].double().sum().cpu()
        count += len(place)
    return on_list, mass, (count, len(chosen))


__all__ = ["ShortlistCoverage", "shortlist_coverage"]
