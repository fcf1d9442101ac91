"""Refusing config fields that cannot be, when the config is built; each error names field, value and remedy."""

import functools
import math

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from .validation_backbone import check_backbone, check_part


def value_errors(config_class):
    """Makes a strict config class raise `ValueError` when it is built with a field that cannot be."""
    build = config_class.__init__

    @functools.wraps(build)
    def __init__(self, *args, **kwargs):
        try:
            build(self, *args, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(str(error)) from error

    config_class.__init__ = __init__
    return config_class


def check_config(config: PreTrainedConfig) -> None:
    """Refuses fields that do not fit together, with a `ValueError` that names the field, its value and the remedy."""
    check_auto_map(config.auto_map)
    if "text_config" in config.sub_configs:
        check_backbone(config.text_config)
    for name in ("sentence_encoder_config", "sentence_decoder_config"):
        check_part(getattr(config, name), name)
    if config.latent_size < 1:
        raise ValueError(f"`latent_size` is {config.latent_size}: it must be at least 1.")
    if config.pooling == "sum" and config.num_latents != 1:
        raise ValueError(f'`num_latents` is {config.num_latents}: with `pooling="sum"` a sentence has 1 latent.')
    if config.conditioning == "cross_attention" and not getattr(
        config.sentence_decoder_config, "add_cross_attention", False
    ):
        raise ValueError(
            f"`sentence_decoder_config` is a {config.sentence_decoder_config.model_type!r} without cross-attention: "
            '`conditioning="cross_attention"` needs one that has it, e.g. "gpt2" with `add_cross_attention=True`.'
        )
    check_groups(config)
    if config.kl_max_bits is not None and config.kl_max_bits <= config.kl_free_bits:
        raise ValueError(
            f"`kl_max_bits` is {config.kl_max_bits}: it must be above `kl_free_bits`, {config.kl_free_bits}, or no KL "
            "has a gradient."
        )
    for name in ("boundary_token_ids", "clause_token_ids"):
        ids = getattr(config, name)
        if ids and not 0 <= min(ids) <= max(ids) < config.vocab_size:
            raise ValueError(f"`{name}` has ids {min(ids)} to {max(ids)}: outside 0 to {config.vocab_size - 1}.")
    longest = {
        "sentence_encoder_config": config.max_sentence_length + config.num_latents,
        "sentence_decoder_config": config.max_sentence_length + 1,
    }
    for name, needed in longest.items():
        available = getattr(getattr(config, name), "max_position_embeddings", None)
        if available is not None and available < needed:
            raise ValueError(
                f"`{name}.max_position_embeddings` is {available}: `max_sentence_length` "
                f"{config.max_sentence_length} needs at least {needed}."
            )


def check_groups(config: PreTrainedConfig) -> None:
    """Refuses unknown entries of a field that is a mapping, and values out of range: shares are from 0 to 1."""
    old = {place: name for name, place in config.old_names.items()}
    for group, defaults in config.groups.items():
        unknown = sorted(set(getattr(config, group)) - set(defaults))
        if unknown:
            raise ValueError(f"`{group}` has {', '.join(unknown)}: it has {', '.join(defaults)}.")
        for key, value in getattr(config, group).items():
            most = 1.0 if group == "dropout" and key != "latent_noise" else math.inf
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            is_left_out = value is None and defaults[key] is None
            if not is_left_out and not (is_number and 0 <= value <= most):
                raise ValueError(
                    f"`{group}.{key}` (or `{old[group, key]}`) is {value!r}: it must be a number from 0 "
                    f"{'up' if most == math.inf else 'to 1'}."
                )


def check_auto_map(auto_map: dict) -> None:
    """Refuses a checkpoint whose code would be taken from elsewhere: `repository--file.Class`."""
    for auto_class, place in auto_map.items():
        if any("--" in str(one) for one in (place if isinstance(place, list | tuple) else [place])):
            raise ValueError(
                f"`auto_map` of config.json has {auto_class} = {place!r}: only code beside the weights is run. "
                "Take the repository's name out if you trust it, and put the file there."
            )


def check_memory(memory: dict | None, width: int) -> None:
    """Refuses a memory of another kind than `LatentMemory` is, whose heads share `width` equally."""
    if memory is None:
        return
    unknown = sorted(set(memory) - {"num_layers", "num_heads"})
    if unknown:
        raise ValueError(f"`memory` has {', '.join(unknown)}: it has `num_layers` and `num_heads`, both numbers.")
    for name, value in memory.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"`memory.{name}` is {value!r}: it must be a whole number of at least 1.")
    if width % memory["num_heads"]:
        raise ValueError(f"`memory.num_heads` is {memory['num_heads']}: it must divide the model's width, {width}.")
