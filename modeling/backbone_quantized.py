"""Quantised backbones: their own layers stay quantised, and what encoder and decoder begin with is made float."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

# Rows of the identity that a quantised layer reads at once: a wide layer's whole identity would be larger than it is.
ROWS_AT_ONCE = 1024

# What transformers and peft ask a model about its quantisation.
QUANTIZED_ATTRIBUTES = (
    "is_quantized",
    "quantization_method",
    "is_loaded_in_8bit",
    "is_loaded_in_4bit",
    "is_8bit_serializable",
    "is_4bit_serializable",
)


def is_float(weight: Any) -> bool:
    """Whether a weight is a tensor in a floating-point type, sharded or not; quantised ones are integers, 8-bit
    floats, or of a class of their own."""
    plain = type(weight).__name__ in ("Parameter", "Tensor", "DTensor")
    return plain and weight.is_floating_point() and weight.dtype.itemsize > 1


def is_quantized(model: nn.Module) -> bool:
    """Whether a model has quantised weights, whoever made them so."""
    linear = [module for module in model.modules() if hasattr(module, "in_features")]
    weights = [*model.parameters(), *(getattr(module, "weight", None) for module in linear)]
    return getattr(model, "hf_quantizer", None) is not None or not all(map(is_float, weights))


@torch.no_grad()
def float_weight(module: Any, like: nn.Linear | Conv1D) -> torch.Tensor | None:
    """The weight of a linear layer, as the float layer `like` has its own; `None` if the module has none.

    A quantised layer's weight is what it makes of the identity: so it is the same for every quantiser.
    """
    if is_float(getattr(module, "weight", None)):
        return module.weight
    if not hasattr(module, "weight") and not hasattr(module, "in_features"):
        return None
    transposed = isinstance(like, Conv1D)
    width = like.weight.shape[0 if transposed else 1]
    device = next(tensor for group in (module.parameters(), module.buffers()) for tensor in group).device
    bias = getattr(module, "bias", None)
    if bias is not None:
        module.bias = None
    try:
        rows = torch.arange(width, device=device).split(ROWS_AT_ONCE)
        # Inputs with a gradient: without one, bitsandbytes packs a layer's weights anew, for a rougher kernel.
        columns = torch.cat([module(F.one_hot(row, width).to(like.weight.dtype).requires_grad_()) for row in rows])
    finally:
        if bias is not None:
            module.bias = bias
    return columns if transposed else columns.T


def forget_quantization(config: PreTrainedConfig) -> None:
    """Takes out of a config that its weights are quantised: those of encoder and decoder are not."""
    vars(config).pop("quantization_config", None)
    vars(config).pop("_is_quantized", None)


def share_quantization(model: PreTrainedModel, backbone: PreTrainedModel) -> None:
    """Makes of a model around a quantised backbone one that transformers and peft know as quantised, in which all but
    the quantised layers of the backbone is float: so it can be trained by adapters, saved and loaded."""
    quantizer = getattr(backbone, "hf_quantizer", None)
    if quantizer is None:
        return
    float_parts = [f"model.{name}" for name, _ in model.model.named_children() if name != "language_model"]
    float_parts += [name for name, _ in model.named_children() if name != "model"]
    for name, module in model.model.language_model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and is_float(module.weight):
            float_parts.append(f"model.language_model.{name}")
    model.hf_quantizer = copy.copy(quantizer)
    model.hf_quantizer.quantization_config = copy.deepcopy(quantizer.quantization_config)
    settings = model.hf_quantizer.quantization_config
    field = "llm_int8_skip_modules" if hasattr(settings, "llm_int8_skip_modules") else "modules_to_not_convert"
    setattr(settings, field, float_parts)
    model.config.quantization_config = settings
    for name in QUANTIZED_ATTRIBUTES:
        if name in vars(backbone):
            setattr(model, name, getattr(backbone, name))
