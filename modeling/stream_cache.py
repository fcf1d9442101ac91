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
from .latent_predictor import LatentSampling
from .stream_layout import Stream, pad_rows


class DecoderCache(DynamicCache):
    """A decoder's keys and values, and where in its stream each of them stands."""

    slots: Stream | None = None  # of (batch, entries); index -1 is a hole

    def append(self, stream: Stream) -> Stream:
        """Announces new entries, `(batch, new)`; returns all of them."""
        self.slots = stream if self.slots is None else self.slots.followed_by(stream)
        return self.slots

    def keep(self, needed: torch.Tensor) -> None:
        """Makes holes of the entries but for those needed, `(batch, entries)`; drops what is a hole in every row."""
        kept = needed.any(0).nonzero().squeeze(1)
        self.slots.index = self.slots.index.masked_fill(~needed, -1)
        self.slots = self.slots.map(lambda values: values[:, kept])
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]


class SllmCache(Cache):
    """
    Args:
        config (`SllmConfig`): The model's config.
        language_model (`Cache`, *optional*): The backbone's cache, see `backbone_cache`.

    Attributes:
        latent_sampling: How latents are sampled, a `LatentSampling`; `None` is as the config says.
        latent_seeds: `(batch,)` seeds of the latents of each row, where they are sampled; `None` is 0 for all.
    """

    def __init__(self, config: PreTrainedConfig, language_model: Cache | None = None):
        super().__init__(layers=[])
        self.config = config
        self.language_model = backbone_cache(config.text_config, language_model)
        self.latent_sampling: LatentSampling | None = None
        self.latent_seeds: torch.Tensor | None = None
        self._begin()

    def _begin(self) -> None:
        self.decoder = DecoderCache()
        self.slots_wanted = 0  # the decoder's cache is trimmed when it has twice as many slots
        self.must_replay = False
        # The rest is None while the cache is empty.
        self.token_ids: torch.Tensor = None  # (batch, length) what was seen, padding included
        self.token_mask: torch.Tensor = None  # (batch, length) bool
        self.token_closes: torch.Tensor = None  # (batch, length) bool
        self.open_length: torch.Tensor = None  # (batch,) tokens of the open sentence
        self.num_tokens: torch.Tensor = None  # (batch,) without padding
        self.num_sentences: torch.Tensor = None  # (batch,) closed ones
        # (batch, entries of the backbone's cache) 0 for the start, j for the closed sentence j, -1 for a hole
        self.entry_sentence: torch.Tensor = None
        self.memory: torch.Tensor = None  # (batch, these entries, num_latents, …) what `LatentMemory` keeps of each
        self.open_latents: torch.Tensor = None  # (batch, num_latents, width) what the open sentence cross-attends to
        # (batch, width) sum of the embeddings of the open sentence's tokens, for the memory; None if it is not known
        self.said: torch.Tensor = None
        self.last_state: torch.Tensor = None  # (batch, width) from which the next token is predicted
        # (batch, width) of the backbone, from which the open sentence is predicted
        self.sentence_state: torch.Tensor = None

    @property
    def is_empty(self) -> bool:
        return self.token_ids is None

    @property
    def num_positions(self) -> torch.Tensor:
        """`(batch,)` length of the decoder's stream: the tokens, and a prefix for each sentence begun."""
        return self.num_tokens + self.config.prefix_length * (self.num_sentences + 1)

    def seeds_of_rows(self, batch_size: int) -> list[int]:
        """The seeds of the latents of each row."""
        return [0] * batch_size if self.latent_seeds is None else self.latent_seeds.tolist()

    # What the forward pass does, in this order.

    def newest(self, attention_mask: torch.Tensor, length: int) -> torch.Tensor:
        """The last `length` columns of a mask that begins with what the cache holds; another mask as it is."""
        covers_all = attention_mask.dim() == 2 and attention_mask.shape[1] == self.get_seq_length() + length
        return attention_mask[:, -length:] if covers_all else attention_mask

    def append(self, **new: torch.Tensor) -> None:
        """Puts values `(batch, new, …)` after those of the same name."""
        for name, values in new.items():
            before = getattr(self, name)
            setattr(self, name, values if before is None else torch.cat([before, values], 1))

    def append_sentences(self, sentence: torch.Tensor) -> torch.Tensor:
        """Announces new entries of the backbone's cache, `(batch, new)` with -1 for holes; returns the 2D mask."""
        self.append(entry_sentence=sentence)
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
        if self.memory is not None:  # nothing is written into it of sentences that did not come yet
            self.memory = self.memory[:, : self.entry_sentence.shape[1]]

    @property
    def written(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What is in the memory, and the sentence that each entry is of."""
        return self.memory, self.entry_sentence

    def leave_inference_mode(self) -> None:
        """Makes ordinary tensors of what those who read on with gradients differentiate."""
        for name in ("open_latents", "memory", "said"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name).clone())

    def attend(self, latents: torch.Tensor, stream: Stream) -> tuple[torch.Tensor, torch.Tensor]:
        """The latents to cross-attend to, those of the sentence open before and then the new ones, `(batch, J,
        num_latents, width)`, and the sentences that they are of, `(batch, J)`.

        Args:
            latents: `(batch, J, num_latents, width)` of the sentences that begin.
            stream: Where they begin.
        """
        first = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        if not self.is_empty:
            latents, first = torch.cat([self.open_latents[:, None], latents], 1), self.num_sentences
        newest = (stream.sentence.masked_fill(stream.index < 0, -1).amax(1) - first).clamp(min=0)  # (batch,)
        self.open_latents = latents[torch.arange(len(latents), device=latents.device), newest]
        return latents, first[:, None] + torch.arange(latents.shape[1], device=latents.device)

    def append_tokens(self, token_ids: torch.Tensor, mask: torch.Tensor, closes: torch.Tensor) -> None:
        """Takes in the tokens of a forward pass, `(batch, new)` each, at its end."""
        self.append(token_ids=token_ids, token_mask=mask, token_closes=closes)
        self._count()
        self._trim()

    def append_open(self, token_ids: torch.Tensor, mask: torch.Tensor) -> None:
        """As `append_tokens`, for one token of each row that closes no sentence."""
        self.append(token_ids=token_ids, token_mask=mask, token_closes=torch.zeros_like(mask))
        self.open_length, self.num_tokens = self.open_length + mask[:, 0], self.num_tokens + mask[:, 0]
        self._trim()

    def open_tokens(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The ids of the open sentences, `(batch, longest of them)` from the left, and the mask that shows them."""
        is_open = self._is_open()
        return pad_rows(self.token_ids[is_open], is_open.nonzero()[:, 0], len(is_open))

    def _is_open(self) -> torch.Tensor:
        """`(batch, length)`, true at tokens of the open sentence: none at or after them closes it."""
        return self.token_mask & ~self.token_closes.flip(1).cummax(1).values.flip(1)

    def _count(self) -> None:
        self.num_tokens, self.num_sentences = self.token_mask.sum(1), self.token_closes.sum(1)
        self.open_length = self._is_open().sum(1)

    def first_needed(self) -> torch.Tensor:
        """`(batch,)` index of the first position of the stream that the next one may see."""
        sentence = self.num_positions - self.open_length - self.config.prefix_length
        return torch.minimum(sentence, self.num_positions - self.config.decoder_context_length).clamp(min=0)

    def _trim(self) -> None:
        """Drops decoder slots that no row needs, but for some that `crop` may want back."""
        if self.decoder.slots.index.shape[1] < 2 * max(self.slots_wanted, self.config.max_sentence_length):
            return
        slack = self.config.max_sentence_length + self.config.prefix_length  # a draft, and where its sentence begins
        self.drop_slots_before(self.first_needed()[:, None] - slack)
        self.slots_wanted = self.decoder.slots.index.shape[1]

    def drop_slots_before(self, index: torch.Tensor) -> None:
        """Forgets the decoder's positions before these `(batch, 1)`."""
        present = self.decoder.slots.index
        self.decoder.keep((present >= index) & (present >= 0))

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
        self._begin()

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
        self._count()
        self.said = None
        # The state at the new end is not known: a row that gets nothing but padding next has no distribution.
        self.last_state = torch.zeros_like(self.last_state)

        stale = self.entry_sentence > self.num_sentences[:, None]
        self.entry_sentence = self.entry_sentence.masked_fill(stale, -1)
        holes = int((self.entry_sentence >= 0).any(0).flip(0).long().argmax())
        if self.language_model.is_croppable:
            self.drop_sentences(holes)

        index, first = self.decoder.slots.index, self.first_needed()
        self.decoder.keep((index >= 0) & (index < self.num_positions[:, None]))
        present = (self.decoder.slots.index >= first[:, None]).sum(1)
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
        if self.decoder.slots is not None:
            self.decoder.slots = self.decoder.slots.map(function)
