"""The tokens that may come: then a step multiplies with their rows of the LM head alone.

They are chosen in one of two ways. A model that was fitted to some text chooses them anew for each token: the LM
head's product with a state is guessed from a few directions of it, which takes a fraction of the head; what is not
chosen keeps the guess (SVD-softmax: Shim et al. 2017, NeurIPS 30). Another one chooses them once for each sentence, as
it begins: from the state that predicts the first token, the shortlist head makes one whose logits rank the tokens of
the whole sentence. It learns by the bag-of-words loss (Zhao et al. 2017, arXiv 1703.10960, section 3.3).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .sentence_segmentation import SentenceLayout
from .token_losses import chunked_loss


def bag_of_words_loss(
    states: torch.Tensor,
    layout: SentenceLayout,
    targets: torch.Tensor,
    shortlist_head: nn.Module,
    lm_head: nn.Module,
    adjust: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Cross-entropy in nats of every token given only the state at which its sentence begins, summed.

    Args:
        states: `(batch, length, width)`, from each of which the next token is predicted.
        targets: `(N,)` the tokens themselves; -100 is left out, and so is each row's first sentence, before which
            there is no state.
        adjust: From what the LM head puts out to the logits.
    """
    first = (layout.token_offset == 0).nonzero().squeeze(1)
    follows = layout.token_rank[first] > 0  # (S,)
    starts = states.flatten(0, 1)[layout.token_index[first[follows] - 1]]
    scored = follows[layout.token_sentence] & (targets != -100)
    group = (follows.cumsum(0) - 1)[layout.token_sentence[scored]]  # which of the starts, in order
    targets = targets[scored]

    def loss_of(logits: torch.Tensor, begin: int) -> torch.Tensor:
        bounds = torch.tensor([begin, begin + len(logits)], device=group.device)
        tokens = slice(*torch.searchsorted(group, bounds).tolist())
        return -adjust(logits).float().log_softmax(-1)[group[tokens] - begin, targets[tokens]].sum()

    return chunked_loss(shortlist_head(starts), loss_of, lm_head)


def token_scores(model: Any, states: torch.Tensor) -> torch.Tensor:
    """How much each token belongs on the list of a sentence, `(S, vocab)`, from the states `(S, width)` at which the
    sentences begin. The end of text always does."""
    return with_ends(model, model.compute_logits(model.shortlist_head(states)))


def guessed_scores(model: Any, states: torch.Tensor) -> torch.Tensor:
    """What the LM head would nearly say of the states `(N, width)`, `(N, vocab)`, before what the backbone does to
    logits. The end of text comes first."""
    directions, table = model.shortlist_fit
    few = F.linear(states.to(table.dtype), directions).to(table.dtype)  # (N, rank); autocast may have another
    # On a CPU, torch 2.13 is faster so with a single state, and many times faster with any number in float16.
    sums_rows = few.device.type == "cpu" and (len(few) == 1 or few.dtype == torch.float16)
    scores = weighted_sum(few, table) if sums_rows else few @ table
    if model.lm_head.bias is not None:
        scores = scores + model.lm_head.bias.to(table)
    return with_ends(model, scores)


def with_ends(model: Any, scores: torch.Tensor) -> torch.Tensor:
    """The scores `(N, vocab)`, with the end of text first."""
    eos = model.config.eos_token_id
    scores[:, [] if eos is None else eos] = torch.inf
    return scores


def weighted_sum(weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`weights @ rows`, `(N, R)` by `(R, vocab)`. Where the vocabulary can be cut in parts, threads share them."""
    parts = math.gcd(rows.shape[1], 16)
    pieces = torch.arange(rows.numel() // rows.shape[1] * parts).view(-1, parts).T  # (parts, R)
    rows = rows.view(-1, rows.shape[1] // parts)
    pieces, each = pieces.repeat(len(weights), 1), weights.repeat_interleave(parts, 0)  # (N * parts, R)
    return F.embedding_bag(pieces, rows, per_sample_weights=each, mode="sum").view(len(weights), -1)


def largest(scores: torch.Tensor, size: int, group: int = 4) -> torch.Tensor:
    """`(N, size)` indices of the largest of `(N, vocab)` scores, in no order: those of `topk`, but for ties.

    Where groups of scores are many, it goes first by the largest one of each: a score among the `size` largest is in
    one of the `size` groups with the largest such scores. On a CPU, `topk` takes as long as its input is.
    """
    count = scores.shape[1] // group
    if scores.shape[1] % group or count < 2 * size:
        return scores.topk(size, dim=1, sorted=False).indices
    groups = scores.view(-1, group, count)
    best = groups.amax(1).topk(size, dim=1, sorted=False).indices  # (N, size)
    within = groups.gather(2, best[:, None].expand(-1, group, -1)).flatten(1)  # (N, group * size)
    chosen = within.topk(size, dim=1, sorted=False).indices
    return best.gather(1, chosen % size) + chosen // size * count


def fit_directions(states: torch.Tensor, weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `rank` directions of a state from which the product with a matrix is guessed best, in the mean square over
    these states.

    Args:
        states: `(N, width)`.
        weight: `(vocab, width)`.

    Returns:
        `directions`, `(rank, width)`, and `table`, `(rank, vocab)`: `table.T @ directions` stands for the matrix.
    """
    states, matrix = states.double(), weight.double()
    moment = states.T @ states / len(states)
    values, vectors = torch.linalg.eigh(moment + 1e-6 * moment.diagonal().mean() * torch.eye(len(moment)).to(moment))
    root = vectors * values.sqrt() @ vectors.T
    directions = torch.linalg.eigh(root @ (matrix.T @ matrix) @ root).eigenvectors[:, -rank:]
    table = (root @ directions).T @ matrix.T
    return (directions.T @ torch.linalg.inv(root)).to(weight), table.to(weight)


def fitted_logits(model: Any, states: torch.Tensor, size: int) -> torch.Tensor:
    """`(N, vocab)` logits of the states `(N, width)`: the head's own of the `size` tokens that are guessed the most
    likely, the end of text among them, and the guess of all others."""
    scores, head = guessed_scores(model, states), model.lm_head
    chosen = largest(scores, size)
    listed = listed_logits(model, states, *rows_of(head, chosen))
    return model.adjust_logits(scores).scatter_(1, chosen, listed.to(scores.dtype))


def listed_logits(model: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The head's logits `(N, size)` of states `(N, width)`, each from rows of its own, `(N, size, width)`."""
    listed = torch.bmm(states[:, None], weight.transpose(1, 2)).squeeze(1)  # the other way round takes longer
    return model.adjust_logits(listed if bias is None else listed + bias)


def rows_of(head: nn.Linear, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """An LM head's weight `(N, size, width)` and bias, if any, of tokens `(N, size)`."""
    # By `embedding`: on a CPU an index takes four times as long.
    return F.embedding(token_ids, head.weight), None if head.bias is None else head.bias[token_ids]


class ShortlistedHead:
    """The LM head of a batch that is being written. Without a fit it is whole until each row has begun a sentence.

    Args:
        model (`SllmForCausalLM`): Has a `shortlist_fit` or a `shortlist_head`.
        size: How many tokens are on a list, at most. The end of text is always on it, all that there are.
    """

    def __init__(self, model: Any, size: int):
        self.model = model
        eos = model.config.eos_token_id
        ends = 0 if eos is None else len(eos) if isinstance(eos, list) else 1
        self.size = min(max(size, ends), model.config.vocab_size)
        self.token_ids: torch.Tensor | None = None  # (batch, size), -1 in rows that have no list yet
        self.rows: tuple[torch.Tensor, torch.Tensor | None] | None = None  # theirs of the LM head, once all have one

    def logits(self, states: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
        """`(batch, vocab)` logits of states `(batch, width)`; without a fit minus infinity for what is not on a row's
        list, and rows that begin a sentence, `(batch,)`, get a new list first."""
        if self.model.shortlist_fit is not None:
            return fitted_logits(self.model, states, self.size)
        if begins.any():
            self._choose(states, begins)
        if self.rows is None:
            return self.model.compute_logits(states)
        listed = listed_logits(self.model, states, *self.rows)
        everything = listed.new_full((len(states), self.model.config.vocab_size), -torch.inf)
        return everything.scatter(1, self.token_ids, listed)

    def _choose(self, states: torch.Tensor, begins: torch.Tensor) -> None:
        if self.token_ids is None:
            self.token_ids = torch.full((len(states), self.size), -1, device=states.device)
        scores = token_scores(self.model, states[begins])
        self.token_ids[begins] = scores.topk(self.size, dim=1, sorted=False).indices
        if (self.token_ids >= 0).all():
            self.rows = rows_of(self.model.lm_head, self.token_ids)
