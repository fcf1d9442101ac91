"""What it costs to write sentences from latents that were predicted further ahead."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_sllm.data.blocks import cut_at_sentences
from hf_sllm.data.statistics import ids_and_bytes
from hf_sllm.modeling import SentenceLayout, SllmCache
from hf_sllm.modeling.generation_ahead import predict_ahead
from hf_sllm.modeling.sentence_decoder import reconstruction_states

from .loop import evaluation_mode, in_batches, padded


@dataclass(frozen=True)
class ParallelCost:
    """What the same sentences cost, the less the model knows of what comes before them.

    Attributes:
        ordinary_nats: Nats per token as the model writes one sentence after the other.
        nats: Of each token by a decoder that sees nothing before the sentence, from latents predicted after all
            sentences before, then after all but the last one, but the last two, and so on.
        ordinary_bits_per_byte, bits_per_byte: The same in bits, for each byte of these sentences' text.
        tokens, sentences, bytes: Of these sentences: all but a block's first ones, before which too few are to be
            unknown.
        seconds: Wall time.
    """

    ordinary_nats: float
    nats: tuple[float, ...]
    ordinary_bits_per_byte: float
    bits_per_byte: tuple[float, ...]
    tokens: int
    sentences: int
    bytes: int
    seconds: float


@torch.no_grad()
def parallel_cost(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Mapping[str, Any]],
    ahead: int = 3,
    batch_size: int = 8,
    block_size: int = 512,
    progress: bool = True,
) -> ParallelCost:
    """Predicts the latents of each sentence from further and further before, as generation does.

    Args:
        model: An SLLM with a `next_latent_weight` above 0.
        tokenizer: Its own, a fast one.
        documents: Rows with a `text`, held out.
        ahead: How many sentences before a sentence may be unknown at most; so many are written beside the first one.
        batch_size: Blocks at a time.
        block_size: Longest block in tokens; a longer document is cut at sentences.
        progress: Whether to show a progress bar, on standard error.

    Raises:
        ValueError: If the model has no head that looks ahead, or no document has sentences enough.
    """
    begun = time.monotonic()
    config: Any = model.config
    if getattr(config, "next_latent_weight", 0) == 0:
        raise ValueError(
            "`next_latent_weight` of this model is 0: it looks no further than one sentence ahead. Train an SLLM with "
            "a weight above 0."
        )
    if ahead < 1:
        raise ValueError(f"`ahead` is {ahead}: it must be at least 1.")
    blocks = [block for document in documents for block in _blocks(document["text"], tokenizer, config, block_size)]
    blocks.sort(key=lambda block: len(block[0]), reverse=True)
    nats = torch.zeros(2 + ahead, dtype=torch.float64)
    tokens = sentences = num_bytes = 0
    with evaluation_mode(model):
        for batch in in_batches(blocks, batch_size, "Looking ahead", progress):
            token_ids, mask = padded([ids for ids, _ in batch], tokenizer, model.device)
            found, layout = score_ahead(model, token_ids, mask.bool(), ahead)
            nats += found
            tokens += len(layout.token_index)
            sentences += len(layout.sentence_row)
            sizes = torch.zeros(token_ids.shape, dtype=torch.long)
            sizes[mask.cpu().bool()] = torch.tensor([size for _, sizes_of_block in batch for size in sizes_of_block])
            num_bytes += int(sizes.flatten()[layout.token_index.cpu()].sum())
    if tokens == 0:
        raise ValueError(f"`documents` have no block of {ahead + 1} sentences: there is nothing to look ahead to.")
    ordinary, *others = (nats / tokens).tolist()
    bits = tokens / (num_bytes * math.log(2))
    return ParallelCost(
        ordinary,
        tuple(others),
        ordinary * bits,
        tuple(value * bits for value in others),
        tokens,
        sentences,
        num_bytes,
        time.monotonic() - begun,
    )


def score_ahead(
    model: Any, token_ids: torch.Tensor, mask: torch.Tensor, ahead: int
) -> tuple[torch.Tensor, SentenceLayout]:
    """What the sentences of a batch cost, from number `ahead` of each row on, the first being number 0.

    Args:
        token_ids, mask: `(batch, length)`, padded on the right.

    Returns:
        `(2 + ahead,)` nats of all their tokens, as in `ParallelCost`, and these sentences.
    """
    body = model.model
    whole = body.segmenter.layout(token_ids, mask)
    layout = whole.from_sentence(torch.full((len(token_ids),), ahead, device=token_ids.device))
    if not len(layout.token_index):
        return torch.zeros(2 + ahead, dtype=torch.float64), layout
    targets = token_ids.flatten()[layout.token_index]
    states = body(token_ids, mask).last_hidden_state.flatten(0, 1)[layout.token_index - 1]
    nats = [model.sum_token_loss(states, targets)]
    foretold = foretold_latents(model, token_ids, mask, ahead)
    embeds = model.get_input_embeddings()(targets)
    for distance in range(ahead + 1):
        latents = foretold[layout.sentence_row, layout.sentence_rank + ahead - distance, distance]
        states, _, _ = reconstruction_states(body.sentence_decoder, layout, embeds, latents, context_length=0)
        nats.append(model.sum_token_loss(states, targets))
    return torch.stack(nats).double().cpu(), layout


def foretold_latents(model: Any, token_ids: torch.Tensor, mask: torch.Tensor, ahead: int) -> torch.Tensor:
    """`(batch, sentences, 1 + ahead, num_latents, latent_size)`: at `[row, j, a]` what is predicted of sentence
    `j + a` when the sentences before j are known. Where a row has no sentence j it means nothing."""
    body = model.model
    latents, _ = body.encode_sentences(token_ids, mask)
    cache = SllmCache(model.config)
    cache.activate_past_recording()
    cache.num_sentences = torch.zeros_like(mask[:, 0], dtype=torch.long)
    foretold = []
    for number in range(latents.shape[1]):
        known = latents[:, max(number - 1, 0) : number]
        following = body.predict_next_latents(known, cache=cache, begins=number == 0)[:, -1:]
        cache.num_sentences = torch.full_like(cache.num_sentences, number)
        foretold.append(torch.cat([following, predict_ahead(model, cache, ahead)], 1))
    return torch.stack(foretold, 1)


def _blocks(
    text: str, tokenizer: PreTrainedTokenizerBase, config: Any, block_size: int
) -> list[tuple[list[int], list[int]]]:
    """Token ids of a document's blocks, and how many bytes each of the tokens stands for."""
    ids, ends = ids_and_bytes([text], tokenizer)
    sizes = np.diff(ends, prepend=0).tolist()
    blocks = cut_at_sentences(ids.tolist(), config, block_size)
    bounds = np.cumsum([0, *map(len, blocks)]).tolist()
    return [(block, sizes[begin:end]) for block, begin, end in zip(blocks, bounds, bounds[1:], strict=False)]


__all__ = ["ParallelCost", "foretold_latents", "parallel_cost", "score_ahead"]
