"""From logits to whole-number frequencies that two runs agree upon, whatever their batches, threads and kernels.

Sums of floats depend on their order, and so on the shape of a batch and on the number of threads. Three things make up
for it. Everything is computed in float64, what a model would do in float32 included: runs then differ by about 1e-13.
Logits are rounded to a grid, so that nearly always they become the same whole numbers. And an encoder sees which
of them lie so near the middle between two that another run might round them otherwise: these it tells.
"""

import math
from collections.abc import Callable
from decimal import Context
from functools import cache
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

FREQUENCY_BITS = 32  # of the likeliest token's frequency
LARGEST_LEVEL = 2.0**40  # beyond it, float64 has no digits left for the margin


class DoublePrecision(TorchFunctionMode):
    """Within it torch makes float64 where float32 is asked for, as norms and rotary embeddings do whatever the
    dtype of their model. Their float32 would differ by 1e-7 between runs."""

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        return function(*map(widen, args), **{name: widen(value) for name, value in (kwargs or {}).items()})


def widen(value: Any) -> Any:
    """Turns the type float32 into float64, and leaves all else."""
    return torch.float64 if value is torch.float32 else value


@cache
def frequency_table(logit_step: float) -> torch.Tensor:
    """`(levels,)` int64: the frequency of a token whose logit is so many steps below the largest; at least 1.

    By decimal arithmetic, which rounds alike everywhere; the exponential of a processor's library need not."""
    context = Context(prec=40)
    step = context.create_decimal_from_float(logit_step)
    levels = math.ceil(FREQUENCY_BITS * math.log(2) / logit_step) + 1
    powers = (context.exp(context.multiply(step, -level)) for level in range(levels))
    return torch.tensor([max(1, round(power * 2**FREQUENCY_BITS)) for power in powers])


def grid_levels(logits: torch.Tensor, logit_step: float) -> torch.Tensor:
    """Logits in steps of the grid, float64, not rounded yet."""
    return (logits.double() / logit_step).clamp(-LARGEST_LEVEL, LARGEST_LEVEL)


def round_levels(levels: torch.Tensor) -> torch.Tensor:
    """To whole numbers, int64; halves upwards."""
    return (levels + 0.5).floor().long()


def frequencies_of(rounded: torch.Tensor, logit_step: float) -> torch.Tensor:
    """`(…, vocab)` rounded levels to frequencies, int64."""
    table = frequency_table(logit_step).to(rounded.device)
    return table[(rounded.amax(-1, keepdim=True) - rounded).clamp(max=len(table) - 1)]


def find_ties(levels: torch.Tensor, rounded: torch.Tensor, logit_step: float, margin: float) -> torch.Tensor:
    """Which logits another run may round otherwise, and so that it matters.

    Args:
        levels, rounded: `(N, vocab)`.
        logit_step: The grid.
        margin: By how much the logits of two runs may differ.

    Returns:
        `(ties, 3)`: row, token, and 1 where the level was rounded up.
    """
    floor = levels.floor()
    is_tie = (levels - floor - 0.5).abs() < margin / logit_step
    is_tie &= rounded.amax(-1, keepdim=True) - rounded <= len(frequency_table(logit_step))
    rows, tokens = is_tie.nonzero(as_tuple=True)
    return torch.stack([rows, tokens, rounded[rows, tokens] - floor[rows, tokens].long()], 1)
