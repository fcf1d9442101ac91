"""Bytes: what an object holds on to, and the most that a computation has alive at once."""

import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig

from .operations import OperationMode

# What a cache may refer to without holding it.
_NOT_HELD = (str, bytes, type, torch.nn.Module, PreTrainedConfig)


def bytes_held(held: Any) -> int:
    """Bytes of all tensors in an object, in its attributes, and so on down.

    The storage of a tensor counts, once: a view of a large tensor keeps all of it in memory.
    """
    return sum(storage.nbytes() for storage in _storages(held, set()).values())


def _storages(held: Any, seen: set[int]) -> dict[int, torch.UntypedStorage]:
    if id(held) in seen or isinstance(held, _NOT_HELD) or callable(held):
        return {}
    seen.add(id(held))
    if isinstance(held, torch.Tensor):
        storage = held.untyped_storage()
        return {storage.data_ptr(): storage}
    if isinstance(held, dict):
        parts = list(held.values())
    elif isinstance(held, list | tuple | set):
        parts = list(held)
    else:
        parts = list(getattr(held, "__dict__", {}).values())
    found: dict[int, torch.UntypedStorage] = {}
    for part in parts:
        found |= _storages(part, seen)
    return found


class PeakMemory:
    """Within it, `bytes` is the most that new tensors took at one time; what was there before does not count.

    On CUDA the allocator says so. Elsewhere the results of all operations are followed from their making to their
    end, which is exact and the same each time, where the size of a process is neither; what an operation takes
    for itself while it runs is not seen. Operations are slower within it, so it is no place to measure time.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device):
        self.device = device
        self.bytes = 0
        self._follower = None if device.type == "cuda" else _Follower(model)

    def __enter__(self) -> Self:
        if self._follower is not None:
            self._follower.__enter__()
        else:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._follower is not None:
            self._follower.__exit__(kind, error, trace)
            self.bytes = self._follower.most
        else:
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before


class _Follower(OperationMode):
    """Adds up the storages that operations make, and takes off those that are gone."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.now = self.most = 0
        # By identity: an operation may return a view of a weight, which is nothing new.
        weights = [*model.parameters(), *model.buffers()]
        self.alive = {weight.untyped_storage()._cdata for weight in weights}

    def run(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        result = operation(*args, **kwargs)
        given = {
            tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if type(tensor) is torch.Tensor
        }
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given:
                self._follow(tensor.untyped_storage())
        self.most = max(self.most, self.now)
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.alive:
            return
        self.alive.add(key)
        self.now += size
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size
