"""The terms of the training loss, each a function of tensors: it knows no model."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from .sentence_segmentation import SentenceLayout

# Logits that exist at once where a loss is computed in chunks: 256 MiB in float32.
CHUNK_ELEMENTS = 2**26


def aligned_targets(
    layout: SentenceLayout, labels: torch.Tensor | None, shift_labels: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels `(N,)` of the tokens themselves and of the token after each, whatever padding lies between.

    Args:
        labels: `(batch, length)`, as the ids; not read where there are `shift_labels`.
        shift_labels: `(batch, length)`, of the token after each.
    """
    given = (labels if shift_labels is None else shift_labels).flatten()[layout.token_index]
    follows = layout.token_row.diff() == 0
    if shift_labels is not None:
        return F.pad(given[:-1].where(follows, -100), (1, 0), value=-100)[: len(given)], given
    return given, F.pad(given[1:].where(follows, -100), (0, 1), value=-100)[: len(given)]


def token_loss(logits: torch.Tensor, targets: torch.Tensor, gamma: float = 0.0) -> torch.Tensor:
    """Cross-entropy in nats of logits `(N, vocab)`, summed over the targets `(N,)` that are not -100.

    Args:
        gamma: Exponent of the focal loss (arXiv 1708.02002, equation 4).
    """
    nats = F.cross_entropy(logits.float(), targets, reduction="none", ignore_index=-100)
    if gamma > 0:
        nats = nats * (1 - torch.exp(-nats)) ** gamma
    return nats.sum()


def chunked_token_loss(
    states: torch.Tensor,
    targets: torch.Tensor,
    lm_head: nn.Module,
    adjust: Callable[[torch.Tensor], torch.Tensor],
    gamma: float = 0.0,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> torch.Tensor:
    """`token_loss` of the logits of states `(N, width)`, see `chunked_loss`."""
    scored = targets != -100
    targets = targets[scored]

    def loss_of(logits: torch.Tensor, first: int) -> torch.Tensor:
        return token_loss(adjust(logits), targets[first : first + len(logits)], gamma)

    return chunked_loss(states[scored], loss_of, lm_head, chunk_elements)


class LMHead(nn.Linear):
    """An LM head that can also sum a loss over the logits it makes, chunk by chunk, within one call of it.

    Where weights are sharded over processes (FSDP, ZeRO-3), they are whole within a call, and gathered once, however
    many chunks a process has.
    """

    def forward(
        self,
        states: torch.Tensor,
        loss_of: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
        chunk_size: int = 1,
    ) -> torch.Tensor:
        """Logits `(…, vocab)` of states `(…, width)`; given `loss_of`, its sum over chunks of `(N, width)` states."""
        if loss_of is None:
            return super().forward(states)
        return _sum_over_chunks(super().forward, self, states, loss_of, chunk_size)


def chunked_loss(
    states: torch.Tensor,
    loss_of: Callable[[torch.Tensor, int], torch.Tensor],
    lm_head: nn.Module,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> torch.Tensor:
    """A loss, summed over what the LM head makes of states `(N, width)`, which never exist all at once.

    Args:
        loss_of: Of some of these logits in a row, and which state the first one is of.
        lm_head: An `LMHead`; another module, as adapters put in its place, is called once for each chunk.
        chunk_elements: How many logits may exist at once.
    """
    chunk_size = max(1, chunk_elements // lm_head.out_features)
    if isinstance(lm_head, LMHead):
        return lm_head(states, loss_of, chunk_size)
    return _sum_over_chunks(lm_head, lm_head, states, loss_of, chunk_size)


def _sum_over_chunks(
    head: Callable, module: nn.Module, states: torch.Tensor, loss_of: Callable, chunk_size: int
) -> torch.Tensor:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return _SumOverChunks.apply(states, lambda chunk, first: loss_of(head(chunk), first), chunk_size, *parameters)


class _SumOverChunks(torch.autograd.Function):
    """Sum of a function over chunks. The gradients are found chunk by chunk in the forward pass, while the chunk's
    logits exist: nothing is computed twice, and the backward pass only scales them."""

    @staticmethod
    def forward(ctx, states, function, chunk_size, *parameters):
        state_grad = torch.zeros_like(states)
        parameter_grads = [torch.zeros_like(parameter) for parameter in parameters]
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        for first in range(0, len(states), chunk_size):
            with torch.enable_grad():
                chunk = states[first : first + chunk_size].detach().requires_grad_()
                loss = function(chunk, first)
            total += loss.detach()
            if any(ctx.needs_input_grad):
                chunk_grad, *grads = torch.autograd.grad(loss, [chunk, *parameters])
                state_grad[first : first + chunk_size] = chunk_grad
                for accumulated, grad in zip(parameter_grads, grads, strict=True):
                    accumulated += grad
        ctx.save_for_backward(state_grad, *parameter_grads)
        return total

    @staticmethod
    def backward(ctx, grad_output):
        state_grad, *parameter_grads = ctx.saved_tensors
        return grad_output * state_grad, None, None, *(grad_output * grad for grad in parameter_grads)


def stop_loss(stop_logits: torch.Tensor, closes: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy in nats of the stop head, summed over the tokens."""
    return F.binary_cross_entropy_with_logits(stop_logits.float(), closes.float(), reduction="sum")
