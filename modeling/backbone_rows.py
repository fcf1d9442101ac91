"""A cache for each row of a batch, for backbones that a hole in a shared one would change."""

import copy

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache

from .validation_backbone import what_masks_miss


def backbone_cache(config: PreTrainedConfig, given: Cache | None = None) -> Cache:
    """The cache of a backbone: the one that is given, or by default a `DynamicCache`; `RowCaches` where it needs them.

    Raises:
        ValueError: If it needs them, and a cache of another kind was given.
    """
    if what_masks_miss(config) is None:  # a mask hides holes from attention, if from nothing else
        return DynamicCache(config=config) if given is None else given
    if given is not None and type(given) is not DynamicCache:
        raise ValueError(
            f"`cache_implementation` made a {type(given).__name__}: a {config.model_type!r} backbone needs a dynamic "
            "cache for each row. Leave it out."
        )
    return RowCaches(config)


class RowCaches(Cache):
    """Each row of the batch is read by itself, so that nothing stands between its sentences.

    Rows close their sentences at different times. In one cache for all of them, those that wait get an empty entry. A
    mask hides it from attention, but not from layers that pass a state along the sequence.

    Args:
        config: The backbone's config.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__(layers=[])
        self.config = config
        self.rows: list[DynamicCache] = []

    def read(self, model: nn.Module, inputs_embeds: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """The backbone's states `(batch, sentences, width)`; zero where a row has no sentence.

        Args:
            model: The backbone.
            inputs_embeds: `(batch, sentences, width)`.
            position_ids: `(batch, sentences)`, -1 where a row has none.
        """
        begins = not self.rows
        if begins:
            self.rows = [DynamicCache(config=self.config) for _ in position_ids]
        states = torch.zeros_like(inputs_embeds)
        for row, cache in enumerate(self.rows):
            own = (position_ids[row] >= 0).nonzero().squeeze(1)
            # After what it holds, some layers take no more than one position at a time.
            for index in own.split(max(len(own), 1) if begins else 1):
                if len(index):
                    states[row, index] = model(
                        inputs_embeds=inputs_embeds[row : row + 1, index],
                        position_ids=position_ids[row : row + 1, index],
                        past_key_values=cache,
                        use_cache=True,
                    ).last_hidden_state[0]
        return states

    @property
    def is_croppable(self) -> bool:
        return False

    @property
    def is_initialized(self) -> bool:
        return bool(self.rows)

    @property
    def batch_size(self) -> int:
        return len(self.rows) or -1

    def reset(self) -> None:
        self.rows = []

    def activate_past_recording(self) -> None:
        """Nothing is to be recorded: it is not cut back, but read anew."""

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        chosen = torch.arange(len(self.rows))[indices.cpu()]
        self.rows = [copy.deepcopy(self.rows[index]) for index in chosen.tolist()]

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.rows = [copy.deepcopy(row) for row in self.rows for _ in range(repeats)]
