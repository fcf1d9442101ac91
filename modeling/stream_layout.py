"""Where prefixes and tokens stand in the stream that the decoder reads, and how much of it has to be read."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .sentence_segmentation import SentenceLayout


@dataclass
class Stream:
    """Where each of `F` positions stands; all tensors `(F,)`.

    Attributes:
        row: The text it belongs to; positions of different rows never see each other.
        sentence: Its sentence, numbered within the row.
        index: Its number within the row's stream, -1 for padding.
        position_ids: What the model is told.
        prefix: How many positions of its sentence's prefix are left, itself included; 0 for a token.
    """

    row: torch.Tensor
    sentence: torch.Tensor
    index: torch.Tensor
    position_ids: torch.Tensor
    prefix: torch.Tensor

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Stream":
        """The stream with a function applied to each of its tensors."""
        return Stream(*(function(values) for values in vars(self).values()))


@dataclass
class DecoderPositions:
    """The decoder's stream, `prefix_1, sentence_1, prefix_2, sentence_2, …`, and what stands where in it.

    Attributes:
        stream: Its `F` positions.
        token_slot: `(N,)` position of each token.
        prefix_slot: `(J, prefix_length)` positions of each prefix.
        output_slot: `(N,)` position whose output is the distribution of the token after each token: the last one of
            the prefix that follows it, if one does.
        followed_token: `(J,)` the token after which each prefix comes, -1 for one with which a row begins.
    """

    stream: Stream
    token_slot: torch.Tensor
    prefix_slot: torch.Tensor
    output_slot: torch.Tensor
    followed_token: torch.Tensor


def decoder_positions(
    layout: SentenceLayout,
    prefix_length: int,
    restart: bool,
    begins: torch.Tensor,
    followed: torch.Tensor,
    past: dict[str, torch.Tensor] | None = None,
) -> DecoderPositions:
    """Lays out the decoder's stream.

    Args:
        layout: The sentences, of N tokens.
        restart: Whether `position_ids` restart with each sentence; else a token has the position it has in the text.
        begins: `(batch,)` rows that begin with a prefix.
        followed: `(N,)` tokens after which the next sentence's prefix comes.
        past: How many `tokens`, `sentences` and `positions` each row already had, each `(batch,)`.
    """
    device = followed.device
    batch_size = len(begins)
    none = torch.zeros(batch_size, dtype=torch.long, device=device)
    past = past or {"tokens": none, "sentences": none, "positions": none}
    begins = begins.long()
    followed_of_row = none.scatter_add(0, layout.token_row, followed.long())
    row_size = layout.row_length + prefix_length * (begins + followed_of_row)
    row_first = row_size.cumsum(0) - row_size

    prefixes_before = begins.cumsum(0)[layout.token_row] + followed.cumsum(0) - followed.long()
    token_slot = torch.arange(len(followed), device=device) + prefix_length * prefixes_before
    output_slot = token_slot + prefix_length * followed

    token_rank = past["tokens"][layout.token_row] + layout.token_rank
    prefix_first, order = torch.cat([row_first[begins.bool()], token_slot[followed] + 1]).sort()
    prefix_slot = prefix_first[:, None] + torch.arange(prefix_length, device=device)

    row = torch.repeat_interleave(row_size)
    slot = torch.arange(len(row), device=device)
    starts_prefix = torch.zeros_like(row)
    starts_prefix[prefix_first] = 1
    prefixes = starts_prefix.cumsum(0)  # up to each position, of all rows
    prefixes_of_rows_before = (begins + followed_of_row).cumsum(0) - (begins + followed_of_row)
    sentence = past["sentences"][row] + prefixes - prefixes_of_rows_before[row] - begins[row]

    prefix = torch.zeros_like(row)
    prefix[prefix_slot] = prefix_length - torch.arange(prefix_length, device=device)

    # A prefix shares the position of the token before its sentence, so that tokens keep the distances of the text.
    position_ids = torch.zeros_like(row)
    position_ids[token_slot] = (layout.token_offset if restart else token_rank) + 1
    if not restart:
        before = torch.cat([past["tokens"][begins.bool()], token_rank[followed] + 1])[order]
        position_ids[prefix_slot] = before[:, None].expand_as(prefix_slot)

    stream = Stream(row, sentence, slot - row_first[row] + past["positions"][row], position_ids, prefix)
    tokens = followed.nonzero().squeeze(1)
    followed_token = torch.cat([torch.full_like(row_first[begins.bool()], -1), tokens])[order]
    return DecoderPositions(stream, token_slot, prefix_slot, output_slot, followed_token)


def output_slots(
    positions: DecoderPositions, layout: SentenceLayout, rank: torch.Tensor, prefix_length: int, begins: bool
) -> torch.Tensor:
    """Where in the stream what follows the row's token of each rank `(batch, kept)` is predicted. So padding on the
    right repeats the last token's, and padding on the left, of rank -1, has the first token's if the texts begin
    here."""
    slot = torch.zeros_like(rank)
    if begins:
        first_slot = torch.searchsorted(positions.stream.row, torch.arange(len(rank), device=rank.device))
        slot = slot + (first_slot + prefix_length - 1)[:, None]
    row_start = layout.row_length.cumsum(0) - layout.row_length
    seen = rank >= 0
    slot[seen] = positions.output_slot[(row_start[:, None] + rank)[seen]]
    return slot


@dataclass
class DecoderTail:
    """The end of each row that the decoder has to read for its last outputs, where the row is read from its beginning.

    Attributes:
        first_sentence: `(batch,)` the sentence that it begins with.
        past: What lies before it: `tokens`, `sentences` and `positions`, each `(batch,)`, for `decoder_positions`.
        first_key: `(batch,)` index of the first position of the stream that later ones may see. At this and all after
            it, every layer of the decoder has read all that it would have read of the whole row.
    """

    first_sentence: torch.Tensor
    past: dict[str, torch.Tensor]
    first_key: torch.Tensor

    def begun_sentences(self, layout: SentenceLayout) -> torch.Tensor:
        """Which of the sentences begun, `(J,)` row after row, the open ones too, are in it."""
        begun = torch.bincount(layout.token_row[layout.token_closes], minlength=len(self.first_sentence)) + 1
        row = torch.repeat_interleave(begun)
        rank = torch.arange(len(row), device=row.device) - (begun.cumsum(0) - begun)[row]
        return rank >= self.first_sentence[row]


def decoder_tail(
    layout: SentenceLayout, last_rank: torch.Tensor, depth: int, context_length: int, prefix_length: int
) -> DecoderTail:
    """What the decoder has to read to give the outputs from some token on: a few sentences, however long the row is.

    A layer sees `context_length` back, or to the beginning of the sentence. The next one sees what these have seen, so
    it goes back once for each layer.

    Args:
        layout: Of whole rows.
        last_rank: `(batch,)` number of the first token whose output is wanted, -1 for what comes before any.
        depth: Layers of the decoder.
    """
    closing = layout.token_closes
    row, rank, sentence = layout.token_row[closing], layout.token_rank[closing], layout.sentence_rank
    sentence = sentence[layout.token_sentence[closing]]
    closed = torch.bincount(row, minlength=len(last_rank))
    number = torch.arange(int(closed.max()) + 1, device=row.device)
    # How many tokens come before each sentence, the one after the last closed one too; more than any where none is.
    tokens = torch.full((len(last_rank), len(number)), 2**40, device=row.device)
    tokens[:, 0] = 0
    tokens[row, sentence + 1] = rank + 1
    start = tokens + prefix_length * number

    def start_of(sentence: torch.Tensor) -> torch.Tensor:
        return start.gather(1, sentence[:, None]).squeeze(1)

    def sentence_at(position: torch.Tensor) -> torch.Tensor:
        return torch.searchsorted(start, position[:, None], right=True).squeeze(1) - 1

    def seen_from(position: torch.Tensor) -> torch.Tensor:
        return torch.minimum(start_of(sentence_at(position)), position - context_length).clamp(min=0)

    # An output is at its token, or, where that closes its sentence, at the last position of the next prefix.
    begun = (tokens <= last_rank[:, None] + 1).sum(1) - 1
    closes = tokens.gather(1, begun[:, None]).squeeze(1) == last_rank + 1
    output = torch.where(closes, start_of(begun) + prefix_length - 1, last_rank + prefix_length * (begun + 1))
    following = layout.row_length + prefix_length * (closed + 1)
    # Drafting takes the last token back and feeds it again. What that one sees is kept: the next sees no more.
    is_closed = tokens.gather(1, closed[:, None]).squeeze(1) == layout.row_length
    first_key = seen_from((torch.where(is_closed, start_of(closed), following) - 1).clamp(min=0))
    position = torch.minimum(seen_from(output), first_key)
    for _ in range(depth - 1):
        position = seen_from(position)
    # One sentence more: a prefix repeats the token before it.
    first = (sentence_at(position) - 1).clamp(min=0)
    past = {"tokens": tokens.gather(1, first[:, None]).squeeze(1), "sentences": first, "positions": start_of(first)}
    return DecoderTail(first, past, first_key)


def embed_tokens(
    table: nn.Module, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, token_index: torch.Tensor
) -> torch.Tensor:
    """`(K, width)` embeddings of some tokens of a batch, from those given or else from a table: of a long text all at
    once would be large."""
    if inputs_embeds is not None:
        return inputs_embeds.flatten(0, 1)[token_index]
    return table(input_ids.flatten()[token_index])
