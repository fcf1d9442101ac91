"""Running a transformer over many short sequences that lie end to end.

Encoder and decoder see a *stream*: the positions of all sentences of the batch, one after the other. How the stream is
laid out for the model is decided here: packed in one row, for kernels that skip what a mask excludes (flash attention
takes `cu_seq_lens`, flex attention a block mask), or in the rows of one padded batch. The mask follows one rule either
way, so the results are the same.

A model is called once for a stream, whatever is in it. Where its weights are sharded over processes (FSDP, ZeRO-3),
each call gathers them: processes that make different numbers of calls would wait for each other forever.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from .stream_layout import Stream

# A shared row takes in as many pieces of the longest kind; at most one more begins in it, so a fifth of it is padding.
PIECES_PER_ROW = 4


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
