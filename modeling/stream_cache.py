"""The cache of a sentence-level language model.

It holds the backbone's cache, one entry for each closed sentence, the decoder's cache of the open sentence and the
context before it, and the tokens seen. Rows of a batch close their sentences at different times: a row that adds fewer
entries than another gets holes, which the masks hide. From its tokens the cache can be made again, which `crop` falls
back on when it goes further back than the decoder's cache reaches.
"""

from collections.abc import Callable

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache

from .backbone_rows import RowCaches, backbone_cache
from .stream_layout import Stream


class SllmCache(Cache):
    """
    Args:
        config (`SllmConfig`): The model's config.
        language_model (`Cache`, *optional*): The backbone's cache, see `backbone_cache`.
    """

    def __init__(self, config: PreTrainedConfig, language_model: Cache | None = None):
        super().__init__(layers=[])
        self.config = config
        self.language_model = backbone_cache(config.text_config, language_model)
        self.decoder = DynamicCache()
        self.must_replay = False
        self._forget()

    # The state; None while the cache is empty.
    token_ids: torch.Tensor  # (batch, length) what was seen, padding included
    token_mask: torch.Tensor  # (batch, length) bool
    token_closes: torch.Tensor  # (batch, length) bool
    open_ids: torch.Tensor  # (batch, longest open sentence) the open sentences, left-aligned
    open_length: torch.Tensor  # (batch,)
    num_tokens: torch.Tensor  # (batch,) without padding
    num_sentences: torch.Tensor  # (batch,) closed ones
    entry_sentence: torch.Tensor  # (batch, entries of the backbone's cache) 0 start, j closed sentence j, -1 hole
    slots: Stream  # of (batch, entries of the decoder's cache); index -1 is a hole
    open_latents: torch.Tensor  # (batch, num_latents, width) what the open sentence cross-attends to
    last_state: torch.Tensor  # (batch, width) from which the next token is predicted
    memory: torch.Tensor  # (batch, entries of the backbone's cache, num_latents, …) what `LatentMemory` keeps of each
    sentence_state: torch.Tensor  # (batch, width) of the backbone, from which the open sentence is predicted
    slots_wanted: int  # the decoder's cache is trimmed when it has twice as many slots

    def _forget(self) -> None:
        self.token_ids = self.token_mask = self.token_closes = None
        self.open_ids = self.open_length = None
        self.num_tokens = self.num_sentences = None
        self.entry_sentence = self.slots = self.open_latents = self.last_state = self.sentence_state = None
        self.memory = None
        self.slots_wanted = 0

    @property
    def is_empty(self) -> bool:
        return self.token_ids is None

    @property
    def num_positions(self) -> torch.Tensor:
        """`(batch,)` length of the decoder's stream: the tokens, and a prefix for each sentence begun."""
        return self.num_tokens + self.config.prefix_length * (self.num_sentences + 1)

    # What the forward pass does, in this order.

    def newest(self, attention_mask: torch.Tensor, length: int) -> torch.Tensor:
        """The last `length` columns of a mask that begins with what the cache holds; another mask as it is."""
        covers_all = attention_mask.dim() == 2 and attention_mask.shape[1] == self.get_seq_length() + length
        return attention_mask[:, -length:] if covers_all else attention_mask

    def append_sentences(self, sentence: torch.Tensor) -> torch.Tensor:
        """Announces new entries of the backbone's cache, `(batch, new)` with -1 for holes; returns the 2D mask."""
        self.entry_sentence = (
            sentence if self.entry_sentence is None else torch.cat([self.entry_sentence, sentence], 1)
        )
        return self.entry_sentence >= 0

    def keep_sentence_state(self, states: torch.Tensor, sentence: torch.Tensor) -> None:
        """Takes in the backbone's states of these entries, `(batch, new, width)`: each row's last one."""
        is_new = sentence >= 0
        newest = states[torch.arange(len(states), device=states.device), is_new.long().cumsum(1).argmax(1)]
        if self.sentence_state is not None:
            newest = torch.where(is_new.any(1, keepdim=True), newest, self.sentence_state)
        self.sentence_state = newest

    def drop_sentences(self, count: int) -> None:
        """Forgets the last `count` entries of the backbone's cache, which stood for sentences that did not come yet.

        Raises:
            ValueError: If the backbone's cache cannot be cut back.
        """
        if count == 0:
            return
        if not self.language_model.is_croppable:
            raise ValueError(
                f"the backbone's cache, a {type(self.language_model).__name__}, cannot be cut back, as "
                "`sentences_at_once` needs it to be: leave that or `cache_implementation` out."
            )
        self.language_model.crop(-count)
        self.entry_sentence = self.entry_sentence[:, :-count]

    @property
    def written(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What is in the memory, and the sentence that each entry is of."""
        return self.memory, self.entry_sentence

    def append_memory(self, written: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes in what is kept of the newest entries of the backbone's cache; returns all that is `written`."""
        self.memory = written if self.memory is None else torch.cat([self.memory, written], 1)
        return self.written

    def leave_inference_mode(self) -> None:
        """Makes ordinary tensors of what those who read on with gradients differentiate."""
        for name in ("open_latents", "memory"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name).clone())

    def append_slots(self, stream: Stream) -> Stream:
        """Announces new entries of the decoder's cache, `(batch, new)`; returns all of them."""
        self.slots = stream if self.slots is None else self.slots.followed_by(stream)
        return self.slots

    def attend(self, latents: torch.Tensor, stream: Stream) -> tuple[torch.Tensor, torch.Tensor]:
        """The latents to cross-attend to, those of the sentence open before and then the new ones, `(batch, L,
        width)`, and the sentence that each is of, `(batch, L)`.

        Args:
            latents: `(batch, J, num_latents, width)` of the sentences that begin.
            stream: Where they begin.
        """
        number = torch.arange(latents.shape[1], device=latents.device).expand(len(latents), -1)
        newest = stream.sentence.masked_fill(stream.index < 0, -1).amax(1)  # (batch,)
        if not self.is_empty:
            latents = torch.cat([self.open_latents[:, None], latents], 1)
            newest = torch.maximum(newest - self.num_sentences, torch.zeros_like(newest))
            number = torch.arange(latents.shape[1], device=latents.device) + self.num_sentences[:, None]
        self.open_latents = latents[torch.arange(len(latents), device=latents.device), newest]
        return latents.flatten(1, 2), number.repeat_interleave(latents.shape[2], 1)

    def append_tokens(self, token_ids: torch.Tensor, mask: torch.Tensor, closes: torch.Tensor) -> None:
        """Takes in the tokens of a forward pass, `(batch, new)` each, at its end."""
        grown = (token_ids, mask, closes)
        if not self.is_empty:
            before = (self.token_ids, self.token_mask, self.token_closes)
            grown = tuple(torch.cat(pair, 1) for pair in zip(before, grown, strict=True))
        # Tokens of the open sentence have no closing token at or after them.
        new_open = mask & ~closes.flip(1).cummax(1).values.flip(1)
        still_open = ~closes.any(1, keepdim=True)
        old_ids = token_ids[:, :0] if self.open_ids is None else self.open_ids
        old_length = mask.new_zeros(len(mask), dtype=torch.long) if self.open_length is None else self.open_length
        old_open = still_open & (torch.arange(old_ids.shape[1], device=mask.device) < old_length[:, None])
        self.token_ids, self.token_mask, self.token_closes = grown
        self._set_open(torch.cat([old_ids, token_ids], 1), torch.cat([old_open, new_open], 1))
        self._count()
        self._trim()

    def append_open(self, token_ids: torch.Tensor, mask: torch.Tensor) -> None:
        """As `append_tokens`, for one token of each row that closes no sentence."""
        fed = mask[:, 0]
        self.token_ids = torch.cat([self.token_ids, token_ids], 1)
        self.token_mask = torch.cat([self.token_mask, mask], 1)
        self.token_closes = torch.cat([self.token_closes, torch.zeros_like(mask)], 1)
        if int(self.open_length.max()) == self.open_ids.shape[1]:
            self.open_ids = torch.cat([self.open_ids, torch.zeros_like(token_ids)], 1)
        # In a row that gets no token this is beyond its open sentence, where nothing counts.
        self.open_ids = self.open_ids.scatter(1, self.open_length[:, None], token_ids)
        self.open_length, self.num_tokens = self.open_length + fed, self.num_tokens + fed
        self._trim()

    def drop_slots_before(self, index: torch.Tensor) -> None:
        """Forgets the decoder's positions before these `(batch, 1)`."""
        self._keep_slots(self.slots.index >= index)

    def _set_open(self, token_ids: torch.Tensor, is_open: torch.Tensor) -> None:
        self.open_length = is_open.sum(1)
        order = is_open.long().sort(dim=1, descending=True, stable=True).indices[:, : int(self.open_length.max())]
        self.open_ids = token_ids.gather(1, order)

    def _count(self) -> None:
        self.num_tokens, self.num_sentences = self.token_mask.sum(1), self.token_closes.sum(1)

    def first_needed(self) -> torch.Tensor:
        """`(batch,)` index of the first position of the stream that the next one may see."""
        sentence = self.num_positions - self.open_length - self.config.prefix_length
        return torch.minimum(sentence, self.num_positions - self.config.decoder_context_length).clamp(min=0)

    def _trim(self) -> None:
        """Drops decoder slots that no row needs, but for some that `crop` may want back."""
        if self.slots.index.shape[1] < 2 * max(self.slots_wanted, self.config.max_sentence_length):
            return
        slack = self.config.max_sentence_length + self.config.prefix_length  # a draft, and where its sentence begins
        needed = self.slots.index >= self.first_needed()[:, None] - slack
        self._keep_slots(needed & (self.slots.index >= 0))
        self.slots_wanted = self.slots.index.shape[1]

    def _keep_slots(self, needed: torch.Tensor) -> None:
        """Makes the other slots holes, and drops those that are holes in every row."""
        keep = needed.any(0).nonzero().squeeze(1)
        self.slots.index = self.slots.index.masked_fill(~needed, -1)
        self.slots = self.slots.map(lambda values: values[:, keep])
        for layer in self.decoder.layers:
            layer.keys, layer.values = layer.keys[:, :, keep], layer.values[:, :, keep]

    # What transformers' generation asks of a cache.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, padding included."""
        return 0 if self.is_empty else self.token_ids.shape[1]

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    @property
    def batch_size(self) -> int:
        return -1 if self.is_empty else len(self.token_ids)

    @property
    def is_croppable(self) -> bool:
        return True

    @property
    def is_initialized(self) -> bool:
        return not self.is_empty

    def activate_past_recording(self) -> None:
        self.language_model.activate_past_recording()

    def reset(self) -> None:
        self.language_model.reset()
        self.decoder = DynamicCache()
        self.must_replay = False
        self._forget()

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last tokens, `-tokens_to_remove` of them.

        Raises:
            ValueError: If `tokens_to_remove` is positive.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"`tokens_to_remove` is {tokens_to_remove}: it must be negative, as in `DynamicCache`.")
        if tokens_to_remove == 0 or self.is_empty:
            return
        length = max(self.get_seq_length() + tokens_to_remove, 0)
        if length == 0:
            self.reset()
            return
        crosses_sentence = bool(self.token_closes[:, length:].any())
        if crosses_sentence:
            self.sentence_state = None
        self.token_ids = self.token_ids[:, :length]
        self.token_mask, self.token_closes = self.token_mask[:, :length], self.token_closes[:, :length]
        self._set_open(self.token_ids, self.token_mask & ~self.token_closes.flip(1).cummax(1).values.flip(1))
        self._count()
        # The state at the new end is not known: a row that gets nothing but padding next has no distribution.
        self.last_state = torch.zeros_like(self.last_state)

        stale = self.entry_sentence > self.num_sentences[:, None]
        self.entry_sentence = self.entry_sentence.masked_fill(stale, -1)
        holes = int((self.entry_sentence >= 0).any(0).flip(0).long().argmax())
        if holes and self.language_model.is_croppable:
            self.language_model.crop(-holes)
            self.entry_sentence = self.entry_sentence[:, :-holes]
            self.memory = None if self.memory is None else self.memory[:, :-holes]

        self._keep_slots((self.slots.index >= 0) & (self.slots.index < self.num_positions[:, None]))
        first = self.first_needed()
        present = (self.slots.index >= first[:, None]).sum(1)
        lost_latents = crosses_sentence and self.open_latents is not None
        lost_slots = bool((present < self.num_positions - first).any())
        lost_sentences = crosses_sentence and isinstance(self.language_model, RowCaches)
        self.must_replay = self.must_replay or lost_latents or lost_slots or lost_sentences

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._map_rows(lambda values: values.index_select(0, beam_idx.to(values.device)), "reorder_cache", beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._map_rows(lambda values: values[indices], "batch_select_indices", indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map_rows(lambda values: values.repeat_interleave(repeats, 0), "batch_repeat_interleave", repeats)

    def _map_rows(self, function: Callable, method: str, argument: torch.Tensor | int) -> None:
        getattr(self.language_model, method)(argument)
        getattr(self.decoder, method)(argument)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, function(value))
        if self.slots is not None:
            self.slots = self.slots.map(function)
