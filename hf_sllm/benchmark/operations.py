"""Following torch's operations, one by one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch._C import DispatchKey
from torch.utils._python_dispatch import TorchDispatchMode

_COMPOSITE = DispatchKey.CompositeImplicitAutograd


class OperationMode(TorchDispatchMode, ABC):
    """Within it, `run` gets each basic operation. In inference mode torch 2.13 hands on composite ones whole, such as
    `linear`; they are taken apart, so that both modes look the same."""

    @abstractmethod
    def run(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Returns what the operation does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.has_kernel_for_dispatch_key(_COMPOSITE):
            with self:
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        return self.run(func, args, kwargs)
