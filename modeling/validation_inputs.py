"""Refusing what cannot be right, before any work is lost: each error names what is wrong, its value and the remedy."""

import math
from numbers import Real
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)


def check_inputs(
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    sentence_ids: torch.Tensor | None,
    vocab_size: int | None,
) -> tuple[int, ...]:
    """Refuses ids, embeddings and explicit sentences that do not fit together.

    Returns:
        The shape `(batch, length)` of the input.

    Raises:
        ValueError: Names the argument, what is wrong with it and the remedy.
    """
    if input_ids is None and inputs_embeds is None:
        raise ValueError("`input_ids` is None: pass it, or `inputs_embeds` with `sentence_ids`.")
    if input_ids is None and sentence_ids is None:
        raise ValueError(
            "`inputs_embeds` came alone: embeddings do not show where sentences end. Pass `input_ids` or "
            "`sentence_ids` with them."
        )
    shape = tuple(input_ids.shape) if input_ids is not None else tuple(inputs_embeds.shape[:2])
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"`input_ids` has shape {shape}: it must be (batch, length) with at least one token.")
    if sentence_ids is not None and tuple(sentence_ids.shape) != shape:
        raise ValueError(f"`sentence_ids` has shape {tuple(sentence_ids.shape)}: it must have {shape}.")
    if input_ids is not None and vocab_size is not None:  # looking at ids makes the host wait for the device
        low, high = input_ids.aminmax()
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"`input_ids` has ids {int(low)} to {int(high)}: the vocabulary has 0 to {vocab_size - 1}. Is the "
                "tokenizer this model's own?"
            )
    return shape


def check_cache(past_key_values: Any, sentence_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> None:
    """Refuses a cache of another kind, and inputs that cannot be cached."""
    # A class loaded with the remote code has another identity, so the name decides.
    if past_key_values is not None and type(past_key_values).__name__ != "SllmCache":
        raise ValueError(
            f"`past_key_values` is a {type(past_key_values).__name__}: this model needs an `SllmCache`, which "
            "`use_cache=True` makes."
        )
    if sentence_ids is not None or inputs_embeds is not None:
        name = "sentence_ids" if sentence_ids is not None else "inputs_embeds"
        raise ValueError(f"`{name}` cannot be cached: the cache works from token ids. Pass `use_cache=False`.")


def check_labels(
    labels: torch.Tensor | None, skip_logits: bool, past_key_values: Any = None, logits_to_keep: int | torch.Tensor = 0
) -> None:
    """Refuses labels where not all that they need is computed, and to compute nothing."""
    if skip_logits and labels is None:
        raise ValueError("`skip_logits` is true without `labels`: nothing would be computed. Pass `labels`.")
    if labels is not None and past_key_values is not None:
        raise ValueError("`labels` came with `past_key_values`: whole texts are scored, so leave the cache out.")
    if labels is not None and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
        raise ValueError(f"`logits_to_keep` is {logits_to_keep}: with `labels` all logits are needed, so leave it 0.")


def check_mask(attention_mask: torch.Tensor | None, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """The attention mask as bool; all true where there is none. Refuses one of another shape."""
    if attention_mask is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    if tuple(attention_mask.shape) != shape:
        raise ValueError(f"`attention_mask` has shape {tuple(attention_mask.shape)}: it must have {shape}.")
    return attention_mask.to(device=device, dtype=torch.bool)


def check_length(position_ids: torch.Tensor, config: PreTrainedConfig, name: str) -> None:
    """Refuses a text beyond the positions that a model has learned; rotary ones go on."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or hasattr(config, "rope_parameters"):
        return
    longest = int(position_ids.max()) + 1
    if longest > limit:
        remedy = "" if name == "text_config" else ", or set `decoder_context_length` to 0"
        raise ValueError(
            f"`{name}.max_position_embeddings` is {limit}: this text needs {longest} positions. Cut it{remedy}."
        )


# What says, beside positions that start again, where texts in one row begin: TRL and transformers send them together.
PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
NO_CACHE_OF_PACKED = (
    "several texts in one row cannot be cached. Pass `use_cache=False` without `past_key_values`, or give each text a "
    "row of its own."
)
COUNTING = "they count up by one, and begin again at 0 with another text. Leave them out if each row is one text."


def check_unknown(kwargs: dict[str, Any]) -> None:
    """Refuses arguments that a forward pass does not have, and with a cache those of several texts in one row."""
    packing = [name for name in PACKING if kwargs.get(name) is not None]
    if packing:
        raise ValueError(f"`{packing[0]}` came with a cache: {NO_CACHE_OF_PACKED}")
    if "write_index" in kwargs:
        raise ValueError(
            "`write_index` was given: continuous batching (`generate_batch`) has a paged cache, which holds no "
            "sentences. Call `generate`."
        )
    if unknown := [name for name in kwargs if name not in PACKING]:
        raise TypeError(f"forward() has no argument {', '.join(unknown)}.")


def check_positions(
    position_ids: torch.Tensor | None, mask: torch.Tensor, begins: bool = True, cached: bool = False
) -> None:
    """Refuses positions that do not count up from 0.

    Args:
        position_ids: `(batch or 1, length)`; what stands at padding does not count.
        mask: `(batch, length)` bool, true where a token is.
        begins: Whether texts begin here. Else the cache holds what comes before.
        cached: Whether there is a cache. Else positions may begin again at 0, where another text begins.
    """
    if position_ids is None or (mask.shape[1] < 2 and not begins):
        return
    if position_ids.dim() != 2 or len(position_ids) not in (1, len(mask)) or position_ids.shape[1] != mask.shape[1]:
        raise ValueError(f"`position_ids` has shape {tuple(position_ids.shape)}: it must have {tuple(mask.shape)}.")
    position_ids = position_ids.to(mask.device).expand_as(mask)
    if begins:
        # Transformers' drafts come with positions that count padding at the left, too.
        column = torch.arange(mask.shape[1], device=mask.device)
        wrong = (mask & (mask.cumsum(1) == 1) & (position_ids != 0) & (position_ids != column)).nonzero()
        if len(wrong):
            row, column = wrong[0].tolist()
            raise ValueError(
                f"`position_ids` begin at {int(position_ids[row, column])} in row {row}: a text begins at 0, and no "
                "cache holds what would come before. Pass the whole text, or its beginning as `past_key_values`; or "
                "leave `position_ids` out."
            )
    counts = (position_ids.diff() == 1) | ~mask[:, 1:] | ~mask[:, :-1]
    wrong = (~counts if cached else ~counts & (position_ids[:, 1:] != 0)).nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        before, after = position_ids[row, column : column + 2].tolist()
        remedy = NO_CACHE_OF_PACKED if cached and after == 0 else COUNTING
        raise ValueError(f"`position_ids` go from {before} to {after} in row {row}: {remedy}")


def check_alike(inputs: dict[str, torch.Tensor | None], shape: tuple[int, ...]) -> None:
    """Refuses inputs of several texts in one row, by name, that are not of its `(batch, length, …)`."""
    for name, values in inputs.items():
        if values is not None and tuple(values.shape[:2]) != shape:
            raise ValueError(f"`{name}` has shape {tuple(values.shape)}: it must have {shape}.")


def check_bounds(bounds: torch.Tensor, mask: torch.Tensor, name: str) -> torch.Tensor:
    """Refuses bounds of texts that do not fit a row.

    Args:
        bounds: `(texts + 1,)` index of the first token of each text, and how many tokens there are.
        mask: `(1, length)` bool, true where a token is.

    Returns:
        `(1, length)` what the bounds count: the number of each position, or of the last token up to each.
    """
    if len(mask) > 1:
        raise ValueError(
            f"`{name}` came with a batch of {len(mask)} rows: it counts the tokens of a single row. Pass "
            "`position_ids` that begin again at 0, or one row at a time."
        )
    tokens, length = int(mask.sum()), mask.shape[1]
    if bounds.dim() != 1 or len(bounds) < 2 or bounds[0] != 0 or (bounds.diff() < 0).any():
        raise ValueError(f"`{name}` is {bounds.tolist()}: it must be one list of numbers that go up from 0.")
    if bounds[-1] not in (tokens, length):
        raise ValueError(
            f"`{name}` ends at {int(bounds[-1])}: the row has {length} positions, of which {tokens} are tokens; it "
            "must end at one of these."
        )
    return mask.cumsum(1) - 1 if bounds[-1] == tokens else torch.arange(length, device=mask.device)[None]


def warn_of_attentions(output_attentions: bool | None) -> None:
    """Attention is within sentences and between them: there is none over the whole text to return."""
    if output_attentions:
        logger.warning_once("`output_attentions` is true: none are returned. Hook the attention layers of a part.")


def check_generation(
    config: PreTrainedConfig, max_sentences: float | None, options: dict[str, Any], fitted: bool, kwargs: dict
) -> None:
    """Refuses options of `generate` that come without what they need."""
    if kwargs.get("inputs_embeds") is not None:
        raise ValueError(
            "`inputs_embeds` cannot be continued: they do not show where sentences end. Pass `input_ids`."
        )
    if max_sentences is not None and not (max_sentences == math.inf or is_count(max_sentences)):
        raise ValueError(
            f"`max_sentences` is {max_sentences!r}: it must be a whole number and at least 1, or `math.inf` for no "
            "limit."
        )
    options = {name: value for name, value in options.items() if value is not None}
    for name, value in options.items():
        if max_sentences is None or not is_count(value):
            raise ValueError(
                f"`{name}` is {value!r}: it must be a whole number and at least 1, and needs `max_sentences` "
                "(`math.inf` for no limit)."
            )
    if "shortlist_size" in options and config.bag_of_words_weight == 0 and not fitted:
        raise ValueError(
            f"`shortlist_size` is {options['shortlist_size']}, and this model was not fitted: call `fit_shortlist` "
            "with some text first. Or train it with a `bag_of_words_weight`, which is 0."
        )
    if "sentences_at_once" in options and config.next_latent_weight == 0:
        raise ValueError(
            f"`sentences_at_once` is {options['sentences_at_once']}, and `next_latent_weight` of this model 0: it has "
            "not learned to look further than one sentence ahead. Train it with a weight above 0."
        )


def check_latent_options(config: PreTrainedConfig, options: dict[str, Any]) -> None:
    """Refuses options of sampling latents that cannot be, or where nothing is sampled."""
    options = {name: value for name, value in options.items() if name.startswith("latent_") and value is not None}
    for name, value in options.items():
        if not config.samples_latents:
            raise ValueError(
                f"`{name}` is {value}, and the latents of this model are not sampled: leave it out, or train a model "
                "whose `latent_predictor` has the type `flow` or `diffusion`."
            )
        is_whole, least = name in ("latent_steps", "latent_seed"), int(name == "latent_steps")
        kinds = int if is_whole else int | float
        if isinstance(value, bool) or not isinstance(value, kinds) or value < least:
            raise ValueError(f"`{name}` is {value!r}: it must be a {'whole ' * is_whole}number of at least {least}.")


def check_predict_ahead(config: PreTrainedConfig, count: int, futures: int, diversity: float) -> None:
    """Refuses to read predictions where the backbone was never trained to, and numbers that cannot be."""
    for name, value in {"count": count, "futures": futures}.items():
        if value < 1:
            raise ValueError(f"`{name}` is {value}: it must be at least 1.")
    if config.has_linear_predictor:
        raise ValueError(
            "`latent_predictor` of this model is a map, whose predictions are messages to the decoder and not what "
            "the backbone reads: train a model with another type, and with `own_inputs` above 0."
        )
    if diversity != 0 and (diversity < 0 or config.latent_predictor["type"] != "flow"):
        raise ValueError(
            f"`diversity` is {diversity}: it must be at least 0, and needs a `latent_predictor` of type `flow`; this "
            f"one is {config.latent_predictor['type']!r}."
        )


def is_count(value: Any) -> bool:
    """Whether a value is a whole number of at least 1."""
    return isinstance(value, Real) and not isinstance(value, bool) and value >= 1 and value % 1 == 0


def check_sentence_loop(input_ids: torch.Tensor, cache: Any, streamer: Any, synced_gpus: bool) -> None:
    """Refuses what the sentence loop cannot do and transformers' own loop can."""
    if cache is None:
        raise ValueError("`use_cache` is False: the sentence loop (`max_sentences`) needs the cache.")
    if streamer is not None and len(input_ids) > 1:
        raise ValueError(f"`streamer` came with a batch of {len(input_ids)}: sentences stream for a single row.")
    if synced_gpus:
        raise ValueError(
            "`synced_gpus` is on: the sentence loop cannot wait for other processes. Leave `max_sentences` out."
        )
