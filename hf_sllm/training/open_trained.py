"""Trained models to go on from, with other fields in their configs."""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from hf_sllm.modeling import SentenceVaeModel, SllmForCausalLM
from hf_sllm.modeling.backbone_layers import copy_sentence_vae

from .adapters import HEADS
from .recipe import merge


def open_sllm(name: str, fields: dict[str, Any]) -> Any:
    """A trained SLLM, to go on from. Adapters of a named backbone stay adapters.

    Args:
        name: Its name or path.
        fields: Of its config, which become other than they were. Heads that it then has for the first time begin as in
            a new model, and so does, without adapters, what has another shape or maps what is pooled in another way.

    Returns:
        An `SllmForCausalLM` or a `PeftModel` around it, in float32.

    Raises:
        TypeError: If it has no such field.
        ValueError: If the model is no SLLM.
    """
    config = open_config(name, "sllm", fields)
    if getattr(config, "backbone_origin", None) is None:
        model: Any = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
        )
        if config.pooling != AutoConfig.from_pretrained(name).pooling:
            encoder = model.model.sentence_encoder
            encoder.latent_head = nn.Linear(encoder.latent_head.in_features, encoder.latent_head.out_features)
            model._init_weights(encoder)
        return model
    from peft import PeftConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict

    model = SllmForCausalLM.from_origin(config).float()
    adapter: Any = PeftConfig.from_pretrained(name)
    adapter.inference_mode = False
    given = adapter.modules_to_save or []
    new = {head: getattr(model, head) for head in HEADS if hasattr(model, head) and head not in given}
    adapter.modules_to_save = [*given, *new]
    weights = load_peft_weights(name, device="cpu")
    for head, module in new.items():
        weights.update({f"base_model.model.{head}.{key}": value for key, value in module.state_dict().items()})
    adapted = get_peft_model(model, adapter)
    set_peft_model_state_dict(adapted, weights)
    return adapted


def open_sentence_vae(name: str, fields: dict[str, Any]) -> PreTrainedModel:
    """A trained sentence VAE, to go on from, in float32. It may get a multiple of its latents.

    Args:
        name: Its name or path.
        fields: Of its config, which become other than they were.

    Raises:
        TypeError: If it has no such field.
        ValueError: If the model is no sentence VAE, or a field makes weights of other shapes.
    """
    model = SentenceVaeModel(open_config(name, "sentence_vae", fields))
    copy_sentence_vae(model, AutoModel.from_pretrained(name, dtype=torch.float32))
    return model


def open_config(name: str, model_type: str, fields: dict[str, Any]) -> Any:
    """The config of a trained model of this type, with these fields changed, mappings entry by entry; the errors are
    those of its callers."""
    config: Any = AutoConfig.from_pretrained(name)
    if config.model_type != model_type:
        raise ValueError(f"`{model_type}` is {name}, a {config.model_type!r} model: it must be a {model_type!r} one.")
    unknown = sorted(set(fields) - set(type(config).__dataclass_fields__) - set(type(config).old_names))
    if unknown:
        raise TypeError(f"`sllm_config` has {', '.join(unknown)}, and {type(config).__name__} no such field.")
    return type(config).from_dict(merge(config.to_dict(), fields))
