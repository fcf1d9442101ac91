"""What of a model is trained: all of it, all but some modules, or adapters on the backbone and the new parts."""

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.dynamic_module_utils import custom_object_save
from transformers.pytorch_utils import Conv1D

# The modules of an `SllmModel` around its backbone, if its config has them.
AROUND_BACKBONE = [
    "sentence_encoder", "sentence_decoder",
    "latent_input", "latent_output", "start_latents", "memory", "latent_predictor",
]  # fmt: skip

# The modules of an `SllmForCausalLM` around its `SllmModel`, if its config has them.
HEADS = ["shortlist_head", "next_latent_head"]


def freeze(model: nn.Module, names: list[str]) -> None:
    """Leaves modules as they are.

    Args:
        names: Each is a part of the names of the parameters meant, between dots: `language_model`.

    Raises:
        ValueError: If there is no parameter of such a name.
    """
    for name in names:
        own = ((path.removeprefix("base_model.model."), parameter) for path, parameter in model.named_parameters())
        chosen = [parameter for path, parameter in own if f".{name}." in f".{path}."]
        if not chosen:
            parts = ", ".join(dict(model.named_children()))
            raise ValueError(f"`freeze` names {name!r}, and the model has no module called that; it has {parts}.")
        for parameter in chosen:
            parameter.requires_grad_(False)


def is_adapted(model: Any) -> bool:
    """Whether a model is a `PeftModel`."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def add_lora(model: Any, fields: dict[str, Any], output_dir: Path) -> Any:
    """Adapts a backbone by LoRA (arXiv 2106.09685). Of an SLLM, all around the backbone is trained in full.

    The adapter goes with the config of the model that it adapts, so that `from_pretrained(output_dir)` finds both. The
    weights of a backbone that has a name stay where they are.

    Args:
        fields: Of peft's `LoraConfig`. By default every linear layer of the backbone is adapted.
        output_dir: Where the adapter will be saved.

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
    modules = backbone.named_modules()
    linear = {path.rsplit(".", 1)[-1] for path, module in modules if isinstance(module, nn.Linear | Conv1D)}
    within = r".*language_model\..*" if is_sllm else ".*"
    defaults: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": rf"{within}\.({'|'.join(sorted(linear))})"}
    if is_sllm:
        defaults["modules_to_save"] = [
            name for name in AROUND_BACKBONE if getattr(model.model, name, None) is not None
        ]
    else:  # a baseline has nothing around it
        fields = {name: value for name, value in fields.items() if name != "modules_to_save"}
    try:
        config = LoraConfig(**{**defaults, **fields})
    except TypeError as error:
        raise ValueError(f"`lora` is {fields!r}: {error}") from error
    base = save_base(model, output_dir)
    adapted = get_peft_model(model, config)
    config.base_model_name_or_path = base
    return adapted


def save_base(model: Any, output_dir: Path) -> str:
    """Saves what an adapter adapts: of a model made of a backbone that has a name, the config alone.

    Returns:
        Its name or path.
    """
    if model.config.model_type != "sllm" and model.name_or_path:
        return model.name_or_path
    if getattr(model, "backbone_origin", None) is None:
        model.save_pretrained(output_dir / "base")
        return str(output_dir / "base")
    config = copy.deepcopy(model.config)
    config.backbone_origin = model.backbone_origin
    config.architectures = [type(model).__name__]
    config.save_pretrained(output_dir)
    custom_object_save(model, output_dir)  # the model's code, which would come with its weights
    return str(output_dir)


def merge_adapters(model: Any) -> Any:
    """Adds the adapters that `from_pretrained` found to the weights that they adapt, and takes them out of the model.

    Returns:
        The same model, as fast as one that never had any.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, module in reversed(list(model.named_modules())):  # what lies within comes before what it lies in
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
        elif isinstance(module, AuxiliaryTrainingWrapper):
            model.set_submodule(name, module.unload_and_optionally_merge_module(True, False, None))
    model._hf_peft_config_loaded = False
    del model.peft_config
    return model


def store_in_bfloat16(folder: Path) -> None:
    """Halves the size of a saved adapter."""
    file = folder / "adapter_model.safetensors"
    weights = {name: value.to(torch.bfloat16) for name, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
