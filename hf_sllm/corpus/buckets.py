"""Rows of like length together, so that batches waste little padding; and rows that fail, which stop no others."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_buckets(
    function: Callable[[list[Item]], list[Result]],
    items: Sequence[Item],
    length: Callable[[Item], int],
    batch_size: int,
    advance: Callable[[int], object],
) -> list[Result | Exception]:
    """Calls a function with batches of items of like length, the longest first.

    The batches depend on the items and on `batch_size` alone: the same items give the same batches, and so the same
    rounding.

    Args:
        function: Makes a result of each item of a batch, in order.
        items: In any order.
        length: Of an item.
        batch_size: Items at a time.
        advance: Called with the number of items of each batch that is done.

    Returns:
        For each item, in order, its result, or what was raised when the function was called with it alone.
    """
    order = sorted(range(len(items)), key=lambda index: -length(items[index]))
    found: list[Result | Exception] = [ValueError("not done")] * len(items)
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        results = attempt(function, [items[index] for index in batch])
        for index, result in zip(batch, results, strict=True):
            found[index] = result
        advance(len(batch))
    return found


def attempt(function: Callable[[list[Item]], list[Result]], batch: list[Item]) -> list[Result | Exception]:
    """The results of a batch; one that fails is halved, until the items that fail are alone.

    So one bad item costs its batch a few calls, and a batch that does not fit into memory is done in parts.
    """
    results = results_or_error(function, batch)
    if not isinstance(results, Exception):
        return [*results]
    if len(batch) == 1:
        return [results]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(batch) // 2
    return [*attempt(function, batch[:middle]), *attempt(function, batch[middle:])]


def results_or_error(function: Callable[[list[Item]], list[Result]], batch: list[Item]) -> list[Result] | Exception:
    """What a function returns or raises; but an error of the device, after which every call would fail, is raised."""
    try:
        return function(batch)
    except torch.AcceleratorError:
        raise
    except Exception as error:
        return error.with_traceback(None)  # which would keep alive what the call had in memory
