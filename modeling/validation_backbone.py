"""Which architectures can be encoder, decoder or backbone, judged by what they can do and not by their names.

An encoder or a decoder reads many sentences at once. A mask keeps them apart, and each has positions of its own. A
layer that passes a state along the sequence (a convolution, a recurrence, linear attention) does not know of masks: it
would mix the sentences, and say nothing. The backbone reads one causal sequence for each text, so it may have them.
"""

import inspect
import sys
from typing import Any

import torch
from transformers import MODEL_MAPPING, PreTrainedConfig

from .transformers_private import carries_state

# Layers that see exactly what a 4D mask allows.
MASKED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}

PART_REMEDY = (
    "Pass as `{name}` the config of an architecture with plain attention, e.g. `LlamaConfig(hidden_size=…, "
    "num_hidden_layers=…, …)`; it may have other sizes than the backbone, and its layers begin random."
)


def check_part(config: PreTrainedConfig, name: str) -> None:
    """Refuses an encoder or a decoder that cannot honour a 4D mask and `position_ids`.

    Args:
        config: Its config.
        name: The field of the config that holds it.

    Raises:
        ValueError: Names the field, the architecture, what it lacks and the remedy.
    """
    missing = missing_arguments(config, ("inputs_embeds", "past_key_values"))
    reason = what_masks_miss(config) or (f"its model takes no `{missing[0]}`" if missing else None)
    if reason is not None:
        raise ValueError(
            f"`{name}` is a {config.model_type!r} model, and {reason}: sentences would be mixed. "
            + PART_REMEDY.format(name=name)
        )


def check_backbone(config: PreTrainedConfig) -> None:
    """Refuses a backbone that sees later positions, cannot be fed embeddings, or has no cache as other models have it.

    Raises:
        ValueError: Names the architecture, what is wrong with it and the remedy.
    """
    missing = missing_arguments(config, ("inputs_embeds", "past_key_values"))
    field = field_that_lets_look_ahead(config)
    if missing:
        raise ValueError(
            f"`text_config` is a {config.model_type!r} model, and takes no `{missing[0]}`: the backbone reads latents "
            "as `inputs_embeds`, and keeps what it read in `past_key_values`. Wrap another architecture."
        )
    if field is not None:
        raise ValueError(
            f"`text_config.{field}` is {getattr(config, field)!r} in a {config.model_type!r} model: it would see "
            "sentences that come later. Set it so that the model is a causal decoder, or wrap another architecture."
        )


def check_window(entries: torch.Tensor, config: PreTrainedConfig) -> None:
    """Refuses a batch of which a window of the backbone would see less than of each row alone.

    Args:
        entries: `(batch, entries of the cache)`, -1 for holes, which come up where rows close sentences at different
            times. A mask hides them, but a window counts them.
        config: The backbone's.

    Raises:
        ValueError: If there are more entries than a window holds, and holes among them.
    """
    sizes = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    windows = [getattr(config, sizes[kind], None) for kind in layer_kinds(config) if kind in sizes]
    window = min((window for window in windows if window is not None), default=None)
    if window is not None and entries.shape[1] > window and bool((entries < 0).any()):
        raise ValueError(
            f"`text_config` has layers that see {window} sentences, and this batch has {entries.shape[1]} places for "
            "them, some of which are empty: its rows would see less than each row alone. Pass one row at a time, or "
            "`use_cache=False`."
        )


def what_masks_miss(config: PreTrainedConfig) -> str | None:
    """How positions of a model change one another in spite of a 4D mask and `position_ids`; `None` if they do not."""
    kinds = sorted(layer_kinds(config) - MASKED_LAYERS)
    if kinds:
        return f"its layers {kinds} do not see what a mask allows, and no more"
    if carries_state(model_class(config)):
        return "its layers pass a state from one position to the next, past any mask"
    if missing_arguments(config, ("position_ids",)):
        return "its model takes no `position_ids`"
    if getattr(config, "alibi", False):
        return "it has ALiBi (`alibi` is True), which takes distances from the mask and not from `position_ids`"
    return None


def layer_kinds(config: PreTrainedConfig) -> set[str]:
    """The kinds of the layers that mix positions; where all have one window, some configs have only its size."""
    # GPT-Neo has `attention_layers`; what is not in `MASKED_LAYERS` builds masks of its own.
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    if kinds is not None:
        return set(kinds) - {"moe", "mlp"}  # which mix nothing
    has_window = getattr(config, "sliding_window", None) is not None
    return {"sliding_attention" if has_window else "full_attention"}


def field_that_lets_look_ahead(config: PreTrainedConfig) -> str | None:
    """The field of a config by which its model is no causal decoder; `None` if it is one."""
    if getattr(config, "is_encoder_decoder", False):
        return "is_encoder_decoder"
    if not getattr(config, "is_causal", True):
        return "is_causal"
    # Some models that are always causal have a field `is_decoder` too, which is False, and do not make other masks.
    makes_both_masks = hasattr(sys.modules[model_class(config).__module__], "create_bidirectional_mask")
    if makes_both_masks and not getattr(config, "is_decoder", True):
        return "is_decoder"
    # "vision" is about pictures alone.
    looks_ahead = getattr(config, "use_bidirectional_attention", None) in (True, "all")
    return "use_bidirectional_attention" if looks_ahead else None


def missing_arguments(config: PreTrainedConfig, names: tuple[str, ...]) -> list[str]:
    """Which of these arguments the model's forward pass does not have."""
    given = inspect.signature(model_class(config).forward).parameters
    return [name for name in names if name not in given]


def model_class(config: PreTrainedConfig) -> Any:
    """The class that `AutoModel` builds by a config.

    Raises:
        ValueError: If there is none.
    """
    found = MODEL_MAPPING.get(type(config), None)
    if found is None:
        raise ValueError(
            f"`AutoModel` has no model for a {config.model_type!r} config: if you have its class, call "
            "`AutoModel.register` with both."
        )
    return found[0] if isinstance(found, list | tuple) else found
