"""Where the decoder's stream, `prefix_1, sentence_1, prefix_2, sentence_2, …`, has its prefixes and its tokens.

Each row of a batch has its stream in a row of its own, from the left.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedConfig

from .sentence_segmentation import ranks


@dataclass
class Stream:
    """Where each position stands; all tensors `(rows, positions)`. Positions of different rows never see each other.

    Attributes:
        sentence: Its sentence, numbered within the row.
        index: Its number within the row's stream, -1 for padding.
        position_ids: What the model is told.
        prefix: How many positions of its sentence's prefix are left, itself included; 0 for a token.
    """

    sentence: torch.Tensor
    index: torch.Tensor
    position_ids: torch.Tensor
    prefix: torch.Tensor

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Stream":
        """The stream with a function applied to each of its tensors."""
        return Stream(*(function(values) for values in vars(self).values()))

    def followed_by(self, other: "Stream") -> "Stream":
        """The positions of both, `(rows, positions + the other's)`."""
        return Stream(*(torch.cat(pair, 1) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass
class DecoderPositions:
    """The decoder's stream of a batch, and what stands where in it.

    Attributes:
        stream: Its `(batch, positions)`.
        token: `(batch, positions)` which of the N tokens stands there, or is its row's last one before; -1 for none.
        vector: `(batch, positions)` at a prefix, which of its row's prefix vectors stands there.
        token_slot: `(batch, length)` position of each input token; of no meaning at padding.
        output_slot: `(batch, length)` position that predicts what follows each input token: its own, or, if it closes
            its sentence, the last one of the next prefix. Padding on the right repeats the last token's; on the left,
            where a text begins, it has what predicts the first token.
    """

    stream: Stream
    token: torch.Tensor
    vector: torch.Tensor
    token_slot: torch.Tensor
    output_slot: torch.Tensor


def lay_out(
    mask: torch.Tensor, closes: torch.Tensor, prefix_length: int, restart: bool, past: Any = None
) -> DecoderPositions:
    """Lays out the decoder's stream.

    Args:
        mask: `(batch, length)` bool, true where one of the N tokens is.
        closes: `(batch, length)` bool, tokens after which the next sentence's prefix comes.
        prefix_length: Positions of a prefix.
        restart: Whether `position_ids` restart with each sentence; else a token has the position it has in the text.
        past (`SllmCache`): What comes before; by default nothing does, and each row begins with a prefix.
    """
    closes = closes.long()
    lead = prefix_length if past is None else 0
    rank = mask.cumsum(1) - 1  # (batch, length)
    token_slot = rank + lead + prefix_length * (closes.cumsum(1) - closes)
    size = (mask + prefix_length * closes).sum(1, keepdim=True) + lead
    place = torch.arange(int(size.max()), device=mask.device)
    is_token = torch.zeros(len(mask), len(place) + 1, dtype=torch.bool, device=mask.device)
    is_token = is_token.scatter_(1, token_slot.where(mask, len(place)), True)[:, :-1]  # (batch, positions)
    is_prefix = ~is_token & (place < size)

    row_length = mask.sum(1)
    row_start = row_length.cumsum(0) - row_length
    tokens = is_token.cumsum(1)  # up to each position, itself included
    vectors = is_prefix.cumsum(1)
    sentence = (vectors + prefix_length - 1) // prefix_length - int(past is None)
    index = place.expand_as(tokens)
    # A prefix shares the position of the token before its sentence, so that tokens keep the distances of the text.
    position_ids = tokens
    if restart:
        position_ids = tokens - torch.where(is_prefix, tokens, 0).cummax(1).values
    if past is not None:
        sentence, index = sentence + past.num_sentences[:, None], index + past.num_positions[:, None]
        before = past.num_tokens[:, None]
        if restart:
            before = torch.where(vectors == 0, past.open_length[:, None], 0)
        position_ids = position_ids + before
    stream = Stream(
        sentence=sentence,
        index=index.masked_fill(place >= size, -1),
        position_ids=position_ids,
        prefix=torch.where(is_prefix, prefix_length - (vectors - 1) % prefix_length, 0),
    )
    return DecoderPositions(
        stream=stream,
        token=torch.where(tokens > 0, row_start[:, None] + tokens - 1, -1),
        vector=(vectors - 1).clamp(min=0),
        token_slot=token_slot,
        output_slot=token_slot + prefix_length * closes,
    )


def tail_of_prefill(
    positions: DecoderPositions, kept: int, depth: int, config: PreTrainedConfig
) -> tuple[DecoderPositions, torch.Tensor, torch.Tensor]:
    """What the decoder has to read to give the last `kept` outputs: little, however long the text is.

    A layer reaches back as far as the context or the sentence does, and the next one sees what these positions have
    seen. Without a context no layer reaches beyond the sentence. One more sentence is read, so that the last token
    can be taken back and another one fed, as drafting does.

    Args:
        depth: Layers of the decoder.

    Returns:
        The positions to be read. Which of the N tokens they need, in order: their `token` is counted among these. And
        `(batch, 1)` the first position that is needed to go on. Of that and all after it every layer then has what it
        would have had of the whole text.
    """
    window, longest = config.decoder_context_length, config.max_sentence_length + config.prefix_length
    reach = max(window, longest)
    first = positions.output_slot[:, -kept, None] - reach * (depth if window else 1) - longest
    exact = torch.where(first > 0, first + reach * (depth - 1 if window else 1), 0)
    first = first.clamp(min=0)
    # Where the last token stands, and where its sentence begins: whoever takes it back sees no further.
    is_token = (positions.stream.prefix == 0) & (positions.stream.index >= 0)
    last = (is_token * torch.arange(is_token.shape[1], device=first.device)).amax(1, keepdim=True)
    sentence = positions.stream.sentence
    begins = ((sentence < sentence.gather(1, last)) & (positions.stream.index >= 0)).sum(1, keepdim=True)
    needed = torch.maximum(exact, torch.minimum(begins, last - window))
    size = (positions.stream.index >= 0).sum(1, keepdim=True) - first
    slot = first + torch.arange(int(size.max()), device=first.device)  # (batch, fewer positions)
    past_end = slot >= first + size
    slot = slot.clamp(max=positions.token.shape[1] - 1)
    stream = positions.stream.map(lambda values: values.gather(1, slot))
    stream.index = stream.index.masked_fill(past_end, -1)
    used, token = positions.token.gather(1, slot).unique(return_inverse=True)
    has_none = int(used[0] < 0)
    tail = DecoderPositions(
        stream=stream,
        token=token - has_none,
        vector=positions.vector.gather(1, slot),
        token_slot=positions.token_slot - first,
        output_slot=positions.output_slot - first,
    )
    return tail, used[has_none:], needed


def pad_rows(values: torch.Tensor, row: torch.Tensor, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What lies row after row, `(S, …)`, as `(batch, most of a row, …)`, zero where a row has fewer, and the mask that
    is true where it has one.

    Args:
        row: `(S,)` the row of each, in order.
    """
    count = torch.bincount(row, minlength=batch_size)
    padded = values.new_zeros(batch_size, int(count.max()), *values.shape[1:])
    mask = torch.arange(padded.shape[1], device=row.device) < count[:, None]
    return padded.index_put((row, ranks(row)), values), mask


def said_so_far(embeds: torch.Tensor, stream: Stream, before: torch.Tensor | None = None) -> torch.Tensor:
    """`(rows, positions, width)` sum of the embeddings of the tokens that a sentence has up to each position, itself
    included; of no meaning at padding. Each sentence is summed for itself, so that nothing of others is in it.

    Args:
        embeds: `(rows, positions, width)` of the tokens; what stands at prefixes does not count.
        before: `(rows, width)` of the tokens that the first sentence of each row had before.
    """
    real, is_token = stream.index >= 0, stream.prefix == 0
    embeds = embeds.float() * is_token[..., None]
    row = torch.arange(len(real), device=real.device)[:, None].expand_as(real)
    if before is not None:
        first = F.pad(stream.sentence.diff(dim=1) != 0, (1, 0)).cumsum(1) == 0
    sentence = torch.stack([row[real], stream.sentence[real]])
    piece = sentence.unique_consecutive(dim=1, return_inverse=True)[1]
    sums = pad_rows(embeds[real], piece, int(piece[-1]) + 1)[0].cumsum(1)  # (sentences, longest, width)
    sums = embeds.masked_scatter(real[..., None], sums[piece, ranks(piece)])
    return sums if before is None else sums + before[:, None] * first[..., None]


def take(states: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
    """`(batch, count, width)` of the states `(batch, positions, width)` at the positions `(batch, count)`."""
    return states.gather(1, slot[..., None].expand(-1, -1, states.shape[-1]))
