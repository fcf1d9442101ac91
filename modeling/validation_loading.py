"""Refusing what `from_backbone` and `from_pretrained` cannot load, in words that say what to do instead."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .backbone_quantized import is_quantized

logger = logging.get_logger(__name__)


def check_dtype(dtype: Any) -> None:
    """Refuses what is no floating-point type of torch, its name or `"auto"`."""
    known = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    is_float = isinstance(known, torch.dtype) and known.is_floating_point and known.itemsize > 1
    if not (dtype is None or dtype == "auto" or is_float):
        raise ValueError(
            f"`dtype` is {dtype!r}: all parts have one floating-point type. Pass it, e.g. `torch.bfloat16` or "
            '"bfloat16", or pass "auto" for that of the backbone.'
        )


def check_name(name: Any) -> None:
    """Refuses a backbone that is neither a model nor the name or the path of one."""
    if not isinstance(name, str | os.PathLike) or not str(name):
        raise TypeError(
            f"`backbone` is {name!r}, a {type(name).__name__}: pass the name or the path of a causal language model, "
            "or the model."
        )


def check_device_map(device_map: Any) -> None:
    """Refuses a map over several devices."""
    if isinstance(device_map, dict) and len(set(map(str, device_map.values()))) > 1:
        refuse_devices(sorted(set(map(str, device_map.values()))))


def check_language_model(backbone: Any) -> None:
    """Refuses a backbone that is no causal language model of transformers, or lies on several devices."""
    if not isinstance(backbone, PreTrainedModel) or backbone.get_output_embeddings() is None:
        raise TypeError(f"`backbone` is a {type(backbone).__name__}: it must be a causal language model.")
    devices = sorted({str(parameter.device) for parameter in backbone.parameters()})
    if len(devices) > 1 or devices == ["meta"]:
        refuse_devices(devices)


def refuse_devices(devices: list[str]) -> NoReturn:
    """Says what to do instead of spreading a backbone."""
    raise ValueError(
        f"`device_map` puts the backbone on {' and '.join(devices)}, and layers of it are copied: it must be on one "
        'device. Pass e.g. `device_map={"": 0}`, or none. Then save the wrapped model, and load it with '
        "`from_pretrained(folder, device_map=…)`, which places all parts."
    )


def check_saving(model: PreTrainedModel) -> None:
    """Refuses to save quantised weights that could not be read back, before anything is written."""
    quantizer = getattr(model, "hf_quantizer", None)
    if getattr(model, "_hf_peft_config_loaded", False) or not is_quantized(model):
        return
    if quantizer is None:
        raise ValueError(
            "the backbone was quantised after it was loaded, so its config does not say how: it could not be read "
            "back. Load it with `quantization_config` and wrap it anew, or save adapters alone."
        )
    if not quantizer.is_serializable():
        method = quantizer.quantization_config.quant_method
        raise ValueError(
            f"`quantization_config` is of {getattr(method, 'value', method)!r}, which transformers cannot save. Save "
            "adapters alone, or wrap and save the backbone without it, or quantise with another method, e.g. "
            "`TorchAoConfig`."
        )


def check_given_model(backbone: nn.Module, dtype: Any, only_loading: dict[str, Any]) -> None:
    """Refuses what only loading can do, where the backbone is a model already."""
    for name, value in only_loading.items():
        if value is not None:
            raise ValueError(
                f"`{name}` is {value!r}, and the backbone is a model already: pass `{name}` where you load it, or "
                "pass its name or path as `backbone`."
            )
    if dtype not in (None, "auto") and is_quantized(backbone):
        raise ValueError(
            f"`dtype` is {dtype!r}, and the backbone is quantised: it keeps the type with which it was loaded. Leave "
            "`dtype` out, or load the backbone with it."
        )


def warn_of_nameless_base(model: PreTrainedModel) -> None:
    """Says of a model with adapters that was never saved that nothing will find it again from these."""
    configs = (getattr(model, "peft_config", None) or {}).values()
    nameless = any(not config.base_model_name_or_path for config in configs)
    if nameless and not getattr(model, "name_or_path", None):
        logger.warning_once(
            "`base_model_name_or_path` of these adapters is None: the model that they adapt was never saved, and its "
            "new parts are random. Before adapters are added, call `save_pretrained(folder)` on it and load it by "
            "`from_pretrained(folder)`; the adapters then name that folder as their base."
        )


@contextmanager
def told_where(field: str, name: Any, subfolder: str | None = None) -> Iterator[None]:
    """Says of what cannot be found which field names it, and where it was looked for.

    Raises:
        OSError: If there is nothing of this name, or a folder of this name holds no model.
    """
    folder = os.path.join(name, subfolder or "")
    if os.path.isdir(folder) and not {"config.json", "adapter_config.json"} & set(os.listdir(folder)):
        raise OSError(f"`{field}` is {str(name)!r}: {what_is_wrong_with(folder)}")
    try:
        yield
    except OSError as error:
        raise OSError(f"`{field}` is {str(name)!r}: {what_is_wrong_with(name)} ({error})") from error


def what_is_wrong_with(name: str | os.PathLike) -> str:
    """Why nothing could be loaded by a name or a path, and what to do."""
    if os.path.isdir(name):
        if os.path.exists(os.path.join(name, "config.json")):
            return "this folder has a config.json, and something else is missing. Save the model there anew."
        return "this folder has no config.json. Pass a folder that `save_pretrained` has written."
    is_path = os.path.isabs(name) or str(name).startswith((".", "~")) or str(name).count(os.sep) > 1
    if is_path or os.path.exists(name):
        return f"there is no such folder, seen from {os.getcwd()}. Check the path."
    return (
        f"there is no such folder, seen from {os.getcwd()}, and no such model could be read from the Hub. Check the "
        f"name, and pass `token` if it is gated. Without a network, run `hf download {name}` where there is one."
    )
