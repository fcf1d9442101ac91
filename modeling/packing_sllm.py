"""Running a transformer over many short sequences that lie end to end.

Encoder and decoder see a *stream*: the positions of all sentences of the batch, one after the other. How the stream is
laid out for the model is decided here: packed in one row, for kernels that skip what a mask excludes (flash attention
takes `cu_seq_lens`, flex attention a block mask), or in the rows of one padded batch. The mask follows one rule either
way, so the results are the same.

A model is called once for a stream, whatever is in it. Where its weights are sharded over processes (FSDP, ZeRO-3),
each call gathers them: processes that make different numbers of calls would wait for each other forever.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .segmentation_sllm import SentenceLayout

# So many tokens a prefill encodes at once: enough to be fast, and few beside what it keeps of a long text.
TOKENS_AT_ONCE = 4096
# A shared row takes in as many pieces of the longest kind; at most one more begins in it, so a fifth of it is padding.
PIECES_PER_ROW = 4


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


def encode_in_parts(
    encoder: nn.Module, embed: Callable, token_index: torch.Tensor, sentence: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As the encoder's own forward pass, in one call for each few thousand tokens, so that memory does not grow with
    the text. For inference with a cache, where no other process waits for these calls.

    Args:
        encoder (`SentenceEncoder`): What turns sentences into latents.
        embed: From indices of tokens, `(K,)`, to their embeddings, `(K, width)`.
        token_index, sentence: `(N,)` index and sentence of each token; at least one.
    """
    lengths = torch.bincount(sentence)
    part = (lengths.cumsum(0) - lengths) // TOKENS_AT_ONCE
    sizes = part[sentence].unique_consecutive(return_counts=True)[1].tolist()
    parts = zip(token_index.split(sizes), sentence.split(sizes), strict=True)
    means, log_variances = zip(*(encoder(embed(index), own - own[0]) for index, own in parts), strict=True)
    return torch.cat(means), None if log_variances[0] is None else torch.cat(log_variances)


class HiddenStates:
    """Collects the states of a transformer's layers while it reads a stream batch by batch.

    Args:
        wanted (`bool | list[int]`): All or none of them, or which, as in transformers' `output_hidden_states`.
    """

    def __init__(self, wanted=False):
        self.kwargs = {} if wanted is False else {"output_hidden_states": wanted}  # of the transformer
        self.layers = None  # list of `(F, width)`, the input first; None in it for a layer not wanted

    def add(self, outputs, rows: torch.Tensor, length: int):
        """Takes in outputs at `rows`, `(R, L)` indices into the stream of that length, where -1 is padding."""
        states = outputs.hidden_states if self.kwargs else None
        if states is None:
            return
        if self.layers is None:
            self.layers = [None if new is None else new.new_zeros(length, new.shape[-1]) for new in states]
        pairs = zip(self.layers, states, strict=True)
        real = rows >= 0
        self.layers = [None if new is None else layer.index_put((rows[real],), new[real]) for layer, new in pairs]

    def gather(self, last: torch.Tensor, function) -> tuple[torch.Tensor | None, ...] | None:
        """What a function makes of each layer; in the last one's place of the output, `(F, width)`."""
        if self.layers is None:
            return None
        layers = [*self.layers[:-1], None if self.layers[-1] is None else last]
        return tuple(None if layer is None else function(layer) for layer in layers)


def visible(query: Stream, key: Stream, causal: bool, context_length: int) -> torch.Tensor:
    """The mask rule, on streams whose tensors broadcast. A position sees its own sentence. If causal, it sees no later
    position, but the tokens among the `context_length` positions before it.

    A prefix is there for its own sentence, and its last position, which predicts the first token, looks back for it.
    The others do not. So the very first sees itself alone, as the first position of a text does: a place to rest
    attention on. Pretrained models need one, and no more than one (attention sinks: Xiao et al. 2023, arXiv
    2309.17453)."""
    same_row = (query.row == key.row) & (key.index >= 0)
    same_sentence = query.sentence == key.sentence
    if not causal:
        return same_row & same_sentence
    distance = query.index - key.index
    looks_back = (query.prefix <= 1) & (key.prefix == 0) & (distance <= context_length)
    return same_row & (distance >= 0) & (same_sentence | looks_back)


def run_stream(
    model: nn.Module,
    inputs_embeds: torch.Tensor,
    stream: Stream,
    causal: bool,
    context_length: int = 0,
    packed: bool | None = None,
    latents: tuple[torch.Tensor, Stream] | None = None,
    hidden_states: HiddenStates | None = None,
) -> torch.Tensor:
    """Last hidden states of a stream.

    Args:
        model: An AutoModel.
        inputs_embeds: `(F, width)`.
        stream: Its positions, in order.
        causal: Whether later positions of a sentence are hidden.
        context_length: See `visible`.
        packed: One row, or padded batches. By default packed where the attention kernel profits from it.
        latents: What the model cross-attends to, `(K, width)`, and where it stands.
        hidden_states: Takes in the states of the other layers.

    Returns:
        `(F, width)`.
    """
    hidden_states = hidden_states or HiddenStates()
    implementation = model.config._attn_implementation
    is_flash = "flash" in (implementation or "")
    # cu_seq_lens express sentences alone, not a window that reaches into the sentence before.
    flash_can_pack = is_flash and (context_length == 0) and latents is None
    if packed is None:
        packed = flash_can_pack or implementation == "flex_attention"
    if packed and flash_can_pack:
        hidden = model(
            inputs_embeds=inputs_embeds[None],
            position_ids=stream.position_ids[None],
            use_cache=False,
            is_causal=causal,
            **hidden_states.kwargs,
            **flash_attention_kwargs(stream),
        )
        rows = torch.arange(len(inputs_embeds), device=inputs_embeds.device)[None]
        hidden_states.add(hidden, rows, len(inputs_embeds))
        return hidden.last_hidden_state[0]

    takes_block_mask = implementation == "flex_attention" and latents is None
    with nullcontext() if takes_block_mask else mask_attention(model):
        lengths = piece_lengths(stream, by_row=context_length > 0)
        rows = padded_rows(lengths.sum()[None] if packed else lengths, share=context_length == 0)
        query = gather_stream(stream, rows)
        hidden = model(
            inputs_embeds=inputs_embeds[rows.clamp(min=0)],
            position_ids=query.position_ids,
            attention_mask=stream_mask(model, query, query, causal, context_length, inputs_embeds.dtype),
            use_cache=False,
            **hidden_states.kwargs,
            **cross_attention_kwargs(model, query, latents),
        )
    hidden_states.add(hidden, rows, len(inputs_embeds))
    real = rows >= 0
    states = hidden.last_hidden_state[real].to(inputs_embeds.dtype)
    return inputs_embeds.new_zeros(inputs_embeds.shape).index_put((rows[real],), states)


def gather_stream(stream: Stream, rows: torch.Tensor) -> Stream:
    """The stream laid out as `rows`, `(R, L)` indices into it where -1 is padding. Padding stands nowhere."""
    laid_out = stream.map(lambda values: values[rows.clamp(min=0)])
    laid_out.index = laid_out.index.masked_fill(rows < 0, -1)
    return laid_out


def stream_mask(
    model: nn.Module, query: Stream, key: Stream, causal: bool, context_length: int, dtype: torch.dtype
) -> Any:
    """The attention mask in the form that the model's attention implementation takes.

    Args:
        query, key: Streams with tensors `(R, Q)` and `(R, K)`; the queries are the last Q of the keys.
    """
    if model.config._attn_implementation == "flex_attention":
        return flex_mask(query, causal, context_length)

    allowed = visible(
        query.map(lambda values: values[:, :, None]),
        key.map(lambda values: values[:, None, :]),
        causal,
        context_length,
    )
    # Padding sees itself: a softmax over nothing is NaN, which a masked key would still spread.
    allowed.diagonal(key.index.shape[1] - query.index.shape[1], 1, 2).fill_(True)
    return mask_tensor(model, allowed, dtype)


def flex_mask(stream: Stream, causal: bool, context_length: int) -> Any:
    """The rule of `visible` as the block mask of flex attention, for a stream with tensors `(R, L)` that sees itself.

    From which position on each one sees, and up to which one it sees (if causal: is seen), is kept in one tensor: with
    more of them, torch 2.13 does not compile the kernel on CPU.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    batch_size, length = stream.index.shape
    position = torch.arange(length, device=stream.index.device).expand(batch_size, -1)
    padding = stream.index < 0
    row_begins = begins_run(stream.row, padding)
    sentence_begins = row_begins | begins_run(stream.sentence, padding)
    first = torch.where(sentence_begins, position, 0).cummax(1).values
    sentence_ends = nn.functional.pad(sentence_begins[:, 1:], (0, 1), value=True)
    last = torch.where(sentence_ends, position, length).flip(1).cummin(1).values.flip(1)
    if causal:
        row_first = torch.where(row_begins, position, 0).cummax(1).values
        seen_from = torch.minimum(first, torch.maximum(position - context_length, row_first))
        first = torch.where(stream.prefix <= 1, seen_from, first)
        last = torch.where((stream.prefix > 0) & ~padding, last, length)

    bounds = torch.stack([first, last], 1)  # (R, 2, L)

    def rule(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        sees = key >= bounds[batch, 0, query]
        if causal:
            return sees & (key <= query) & (query <= bounds[batch, 1, key])
        return sees & (key <= bounds[batch, 1, query])

    return create_block_mask(rule, batch_size, None, length, length, device=str(position.device))


def begins_run(values: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    """`(R, L)` whether a value differs from the one before it; at padding always."""
    return nn.functional.pad(values[:, 1:] != values[:, :-1], (1, 0), value=True) | padding


def mask_tensor(model: nn.Module, allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`(R, Q, K)` bool as the 4D mask of the model's attention: bool for sdpa, additive for eager."""
    allowed = allowed[:, None]
    if model.config._attn_implementation != "eager":
        return allowed
    if torch.is_autocast_enabled(allowed.device.type):
        dtype = torch.float32
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def cross_attention_kwargs(model: nn.Module, query: Stream, latents: tuple[torch.Tensor, Stream] | None) -> dict:
    """Arguments that make each position attend to the latents of its own sentence."""
    if latents is None:
        return {}
    states, stream = latents
    key = stream.map(lambda values: values[None, None])  # (1, 1, K)
    allowed = visible(query.map(lambda values: values[:, :, None]), key, False, 0)  # (R, Q, K)
    # Each row gets the latents of its own sentences only; a query that is padding sees all of them.
    needed = allowed.any(1).long()  # (R, K)
    own = needed.sort(dim=1, descending=True, stable=True).indices[:, : int(needed.sum(1).max())]
    allowed = allowed.gather(2, own[:, None].expand(-1, allowed.shape[1], -1))
    allowed = allowed | ~allowed.any(-1, keepdim=True)
    return {
        "encoder_hidden_states": states[own],
        "encoder_attention_mask": mask_tensor(model, allowed, states.dtype),
    }


def piece_lengths(stream: Stream, by_row: bool) -> torch.Tensor:
    """Lengths of the stretches that never see each other: the rows, or else the sentences."""
    if by_row:
        return stream.row.unique_consecutive(return_counts=True)[1]
    return torch.stack([stream.row, stream.sentence]).unique_consecutive(dim=1, return_counts=True)[1]


def padded_rows(lengths: torch.Tensor, share: bool) -> torch.Tensor:
    """Indices `(R, L)` into the stream, -1 for padding, of pieces laid in rows.

    Args:
        lengths: Of the pieces.
        share: Whether pieces lie end to end in rows of similar length, so that little is padding; else each has a row.
    """
    if share:
        row = (lengths.cumsum(0) - lengths) // (PIECES_PER_ROW * lengths.max())
        lengths = lengths.new_zeros(int(row[-1]) + 1).index_add(0, row, lengths)
    first = lengths.cumsum(0) - lengths
    position = torch.arange(int(lengths.max()), device=lengths.device)
    return (first[:, None] + position).masked_fill(position >= lengths[:, None], -1)


def flash_attention_kwargs(stream: Stream) -> dict:
    """The packing arguments of flash attention, with each sentence a sequence of its own."""
    lengths = piece_lengths(stream, by_row=False)
    bounds = nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(lengths.max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


@contextmanager
def mask_attention(model: nn.Module) -> Iterator[None]:
    """Within it, a model set to flash or flex attention takes masks as tensors: it uses sdpa."""
    implementation = model.config._attn_implementation
    if implementation in ("eager", "sdpa", None):
        yield
        return
    model.config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        model.config._attn_implementation = implementation


__all__ = [
    "DecoderPositions",
    "DecoderTail",
    "HiddenStates",
    "Stream",
    "decoder_positions",
    "decoder_tail",
    "embed_tokens",
    "encode_in_parts",
    "output_slots",
    "run_stream",
]
