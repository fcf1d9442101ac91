"""What of a model is trained: all of it, all but some modules, or adapters on the backbone and the new parts."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

# The modules of an `SllmModel` around its backbone.
AROUND_BACKBONE = ["sentence_encoder", "sentence_decoder", "latent_input", "latent_output", "start_latents"]


def freeze(model: nn.Module, names: list[str]) -> None:
    """Leaves modules as they are.

    Args:
        names: Each is a part of the names of the parameters meant, between dots: `language_model`.

    Raises:
        ValueError: If there is no parameter of such a name.
    """
    for name in names:
        chosen = [parameter for path, parameter in model.named_parameters() if f".{name}." in f".{path}."]
        if not chosen:
            parts = ", ".join(dict(model.named_children()))
            raise ValueError(f"`freeze` names {name!r}, and the model has no module called that; it has {parts}.")
        for parameter in chosen:
            parameter.requires_grad_(False)


def add_lora(model: PreTrainedModel, fields: dict[str, Any], base_dir: Path) -> Any:
    """Adapts a backbone by LoRA (arXiv 2106.09685). Of an SLLM, all around the backbone is trained in full.

    Args:
        fields: Of peft's `LoraConfig`. By default every linear layer of the backbone is adapted.
        base_dir: Where the model as it is now is saved, unless it was before: an adapter names its base.

    Returns:
        A `PeftModel`.

    Raises:
        ValueError: If `LoraConfig` has no such field, or cannot be made of these.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError('`lora` needs `peft`: pip install "hf-sllm[train]"') from error

    is_sllm = model.config.model_type == "sllm"
    backbone = model.model.language_model if is_sllm else model.base_model
    linear = {
        path.rsplit(".", 1)[-1] for path, module in backbone.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }
    within = r".*language_model\..*" if is_sllm else ".*"
    defaults: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": rf"{within}\.({'|'.join(sorted(linear))})"}
    if is_sllm:
        defaults["modules_to_save"] = AROUND_BACKBONE
    try:
        config = LoraConfig(**{**defaults, **fields})
    except TypeError as error:
        raise ValueError(f"`lora` is {fields!r}: {error}") from error
    if not (base_dir / "config.json").exists():
        model.save_pretrained(base_dir)
    return get_peft_model(AutoModelForCausalLM.from_pretrained(base_dir, dtype=model.dtype), config)
