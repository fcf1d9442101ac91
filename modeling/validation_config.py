"""Refusing config fields that cannot be, when the config is built; each error names field, value and remedy."""

import functools
import math

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from .validation_backbone import check_backbone, check_part

# The entries of fields that are mappings which are words, and those that there are.
WORDS = {
    "type": ("linear", "mse", "flow", "diffusion"),
    "schedule": ("cosine", "quadratic", "sigmoid"),
}

# Entries of other fields than `dropout` that are shares as well.
SHARES = ("unconditional", "own_inputs")


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
    if "text_config" in config.sub_configs and not config.has_linear_predictor:
        for name in ("next_latent_weight", "contrastive_weight"):
            if getattr(config, name) > 0:
                raise ValueError(
                    f"`{name}` is {getattr(config, name)}: it needs the latents that a map predicts, and a "
                    f"`latent_predictor` of type {config.latent_predictor['type']!r} is none: leave one of both out."
                )
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


def check_entries(group: str, entries: dict, defaults: dict, old_names: dict) -> None:
    """Refuses unknown entries of a field that is a mapping, and values out of range. Shares go from 0 to 1, numbers of
    layers and heads begin at 1."""
    unknown = sorted(set(entries) - set(defaults))
    if unknown:
        raise ValueError(f"`{group}` has {', '.join(unknown)}: it has {', '.join(defaults)}.")
    old = {key: f" (or `{name}`)" for name, (its_group, key) in old_names.items() if its_group == group}
    for key, value in entries.items():
        most = 1.0 if (group == "dropout" and key != "latent_noise") or key in SHARES else math.inf
        is_right = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most
        says = f"a number from 0 {'up' if most == math.inf else 'to 1'}"
        if type(defaults[key]) is int or group == "memory":
            is_right, says = type(value) is int and value >= 1, "a whole number of at least 1"
        if key in WORDS:
            is_right, says = value in WORDS[key], f"one of {', '.join(WORDS[key])}"
        if not is_right and not (value is None and defaults[key] is None):
            raise ValueError(f"`{group}.{key}`{old.get(key, '')} is {value!r}: it must be {says}.")


def check_auto_map(auto_map: dict) -> None:
    """Refuses a checkpoint whose code would be taken from elsewhere: `repository--file.Class`."""
    for auto_class, place in auto_map.items():
        if any("--" in str(one) for one in (place if isinstance(place, list | tuple) else [place])):
            raise ValueError(
                f"`auto_map` of config.json has {auto_class} = {place!r}: only code beside the weights is run. "
                "Take the repository's name out if you trust it, and put the file there."
            )
