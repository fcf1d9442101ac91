"""Several texts in one row, as packing and padding-free training lay them: each gets a row of its own, and goes back.

Where a text begins is told by `position_ids` that begin again at 0, by `seq_idx` or by `cu_seq_lens_q`. In rows of
their own texts cannot see one another, whatever the parts of the model are.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from .sentence_segmentation import ranks
from .stream_layout import pad_rows
from .validation_inputs import PACKING, check_alike, check_bounds, check_mask, check_positions, check_unknown


@dataclass
class PackedTexts:
    """Where the tokens of a packed `(batch, length)` input stand once each of its T texts has a row of its own.

    Attributes:
        mask: `(T, longest)` bool, true where a token is.
        index: `(T, longest)` index of each token in the flattened input; of no meaning elsewhere.
        place: `(batch, length)` index of each input token in the flattened rows.
        ends: `(T, longest)` bool, where a text ends and another one follows in its packed row.
    """

    mask: torch.Tensor
    index: torch.Tensor
    place: torch.Tensor
    ends: torch.Tensor

    def unpack(self, **inputs: torch.Tensor | None) -> list[torch.Tensor | None]:
        """Inputs `(batch, length, …)` by name, each as `(T, longest, …)`.

        Raises:
            ValueError: If one is not of this batch and length.
        """
        check_alike(inputs, tuple(self.place.shape))
        return [None if values is None else values.flatten(0, 1)[self.index] for values in inputs.values()]

    def pack(self, values: torch.Tensor, kept: int = 0) -> torch.Tensor:
        """`(T, longest, …)` back as `(batch, length, …)`, or `(batch, kept, …)` of so many last positions."""
        return values.flatten(0, 1)[self.place[:, -kept:]]


def find_texts(
    inputs: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> PackedTexts | None:
    """Where the texts of a forward pass without a cache stand; `None` if each row has one.

    Args:
        inputs: `(batch, length, …)`.
        kwargs: Further arguments of the pass; those in `PACKING` are taken out.

    Raises:
        TypeError: If there are others.
        ValueError: If positions do not count up from 0, or if what tells where texts begin does not fit the batch or
            does not agree.
    """
    packing = {name: kwargs.pop(name) for name in PACKING if name in kwargs}
    packing = {name: values for name, values in packing.items() if values is not None}
    check_unknown(kwargs)
    if inputs is None or inputs.dim() < 2 or 0 in inputs.shape or (position_ids is None and not packing):
        return None
    shape = tuple(inputs.shape[:2])
    mask = check_mask(attention_mask, shape, inputs.device)
    check_positions(position_ids, mask)
    check_alike({"seq_idx": packing.get("seq_idx")}, shape)
    starts = text_starts(mask, position_ids, packing)
    if not starts[:, 1:].any():
        return None
    text = starts.flatten().cumsum(0) - 1  # (batch * length,)
    index, real = pad_rows(torch.arange(len(text), device=text.device), text, int(text[-1]) + 1)
    place = text * index.shape[1] + ranks(text)
    ends = F.pad(starts[:, 1:], (0, 1))  # (batch, length)
    return PackedTexts(mask.flatten()[index] & real, index, place.view(shape), ends.flatten()[index] & real)


def text_starts(
    mask: torch.Tensor, position_ids: torch.Tensor | None, packing: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Where texts begin, `(batch, length)` bool; padding belongs to the text before it, at the left of a row to the
    first one.

    Args:
        mask: `(batch, length)` bool, true where a token is.
        position_ids: `(batch or 1, length)`.
        packing: Those of `PACKING` that were given.
    """
    column = torch.arange(mask.shape[1], device=mask.device)
    before = F.pad(torch.where(mask, column, 0).cummax(1).values, (1, 0))[:, :-1]  # the last token before each column
    goes_on = mask & (mask.cumsum(1) > 1)  # not a row's first token, which begins a text in any case
    numbers = {}
    if "seq_idx" in packing:
        numbers["seq_idx"] = packing["seq_idx"].to(mask.device)
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        if name in packing:
            bounds = packing[name].to(mask.device)
            rank = check_bounds(bounds, mask, name)
            numbers[name] = torch.searchsorted(bounds, rank.to(bounds.dtype), right=True)
    found = {name: goes_on & (number != number.gather(1, before)) for name, number in numbers.items()}
    if position_ids is not None:
        found = {"position_ids": goes_on & (position_ids.to(mask.device) == 0), **found}
    (name, starts), *others = found.items() or [("", torch.zeros_like(mask))]
    for other, its_starts in others:
        if not torch.equal(starts, its_starts):
            row, column_of = (starts != its_starts).nonzero()[0].tolist()
            says, denies = (name, other) if starts[row, column_of] else (other, name)
            raise ValueError(
                f"`{says}` begins a text at position {column_of} of row {row}, and `{denies}` does not: leave one of "
                "them out, or make them agree."
            )
    return starts | (column == 0)
