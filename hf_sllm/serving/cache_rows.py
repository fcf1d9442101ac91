"""The rows of a running batch: caches are joined where sentences end, and what no row needs any more is dropped.

Rows of different lengths stand side by side with holes between, which the masks of the model hide: it needs them in
any batch, for rows close their sentences at different times.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from hf_sllm.modeling import SllmCache, SllmConfig
from hf_sllm.modeling.backbone_rows import RowCaches
from hf_sllm.modeling.stream_layout import pad_rows

# What a cache has of its tokens `(batch, tokens)`, and of the entries of the backbone's cache `(batch, entries, …)`
# with the value of a hole.
TOKENS = ("token_ids", "token_mask", "token_closes")
ENTRIES = {"entry_sentence": -1, "memory": 0}


def new_cache(config: SllmConfig) -> SllmCache:
    """An empty cache that others can be joined with. Where a layer of the backbone counts what it holds, such as a
    sliding window or a state, each row has a backbone's cache of its own: holes would be counted."""
    cache, backbone = SllmCache(config), config.get_text_config(decoder=True)
    probe = DynamicCache(config=backbone)
    if any(type(layer) is not DynamicLayer for layer in probe.layers):
        cache.language_model = RowCaches(backbone)
    return cache


def join(caches: Sequence[SllmCache]) -> SllmCache:
    """One cache with the rows of all, in their order. The caches are used up.

    Args:
        caches: Of one model, none of them empty.
    """
    first = caches[0]
    if len(caches) == 1:
        return first
    joined = {name: _stack([getattr(cache, name) for cache in caches], 0, left=False) for name in TOKENS}
    joined |= {name: _stack([getattr(cache, name) for cache in caches], hole) for name, hole in ENTRIES.items()}
    of_rows = [name for name, value in vars(first).items() if isinstance(value, torch.Tensor) and name not in joined]
    joined |= {name: torch.cat([getattr(cache, name) for cache in caches]) for name in of_rows}
    for name, value in joined.items():
        setattr(first, name, value)
    if isinstance(first.language_model, RowCaches):
        backbones: list[Any] = [cache.language_model for cache in caches]
        first.language_model.rows = [row for backbone in backbones for row in backbone.rows]
    else:
        _join_layers([cache.language_model for cache in caches])
    _join_layers([cache.decoder for cache in caches])
    slots = first.decoder.slots
    for name in vars(slots):
        hole = -1 if name == "index" else 0
        setattr(slots, name, _stack([getattr(cache.decoder.slots, name) for cache in caches], hole))
    return first


def drop_holes(cache: SllmCache) -> None:
    """Drops what no row needs: padding, entries that are holes in every row, and what the decoder sees no more."""
    mask = cache.token_mask
    row = mask.nonzero()[:, 0]
    for name in TOKENS:
        setattr(cache, name, pad_rows(getattr(cache, name)[mask], row, len(mask))[0])
    kept = (cache.entry_sentence >= 0).any(0).nonzero().squeeze(1)
    for name in ENTRIES:
        if getattr(cache, name) is not None:
            setattr(cache, name, getattr(cache, name)[:, kept])
    if not isinstance(cache.language_model, RowCaches):
        layers: Any = cache.language_model.layers
        for layer in layers:
            layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]
    cache.drop_slots_before(cache.first_needed()[:, None])
    cache.slots_wanted = 0


def _stack(values: list[Any], hole: int, dim: int = 1, left: bool = True) -> torch.Tensor | None:
    """Tensors one below the other, filled up with holes along a dimension to the length of the longest."""
    if values[0] is None:
        return None
    longest = max(value.shape[dim] for value in values)
    padded = []
    for value in values:
        missing = longest - value.shape[dim]
        sides = [0, 0] * (value.dim() - dim - 1) + ([missing, 0] if left else [0, missing])
        padded.append(F.pad(value, sides, value=hole))
    return torch.cat(padded)


def _join_layers(caches: list[Any]) -> None:
    """The keys and values `(batch, heads, entries, size)` of all, in the first cache."""
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        for name in ("keys", "values"):
            setattr(layers[0], name, _stack([getattr(layer, name) for layer in layers], 0, dim=2))
