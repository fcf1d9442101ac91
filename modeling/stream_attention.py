"""What a position of a stream sees, and running a transformer so.

Decoders read a batch's streams as they are laid out, one to a row. Where sentences see nothing but themselves, as in
the encoder, they are packed end to end: in one row for the kernels that skip what lies between (flash attention takes
`cu_seq_lens`, flex attention a block mask), else in a few rows with little padding. The rule is the same either way.

A model is called once for a stream, whatever is in it. Where its weights are sharded over processes (FSDP, ZeRO-3),
each call gathers them: processes that make different numbers of calls would wait for each other forever.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .stream_cache import DecoderCache
from .stream_layout import Stream
from .transformers_private import attention_implementation

# A shared row takes in as many pieces of the longest kind; at most one more begins in it, so a fifth of it is padding.
PIECES_PER_ROW = 4
# The last hidden states; where they are asked for, those of the input and of each layer too, None for one not wanted.
States = tuple[torch.Tensor | None, ...]


def visible(query: Stream, key: Stream, causal: bool, context_length: int) -> torch.Tensor:
    """The mask rule, on streams whose tensors broadcast. A position sees its own sentence. If causal, it sees no later
    position, but the tokens among the `context_length` positions before it.

    A prefix is there for its own sentence, and its last position, which predicts the first token, looks back for it.
    The others do not. So the very first sees itself alone, as the first position of a text does: a place to rest
    attention on. Pretrained models need one, and no more than one (attention sinks: Xiao et al. 2023, arXiv
    2309.17453)."""
    same_sentence = (query.sentence == key.sentence) & (key.index >= 0)
    if not causal:
        return same_sentence
    distance = query.index - key.index
    looks_back = (query.prefix <= 1) & (key.prefix == 0) & (distance <= context_length) & (key.index >= 0)
    return (distance >= 0) & (same_sentence | looks_back)


def run_stream(
    model: nn.Module,
    inputs_embeds: torch.Tensor,
    stream: Stream,
    causal: bool,
    context_length: int = 0,
    cache: DecoderCache | None = None,
    latents: tuple[torch.Tensor, torch.Tensor] | None = None,
    **kwargs: Any,
) -> States:
    """The hidden states of new positions.

    Args:
        model: An AutoModel.
        inputs_embeds: `(rows, Q, width)`.
        stream: The positions, in tensors `(rows, Q)`.
        context_length: See `visible`.
        cache: Holds the positions before; these are added.
        latents: What the model cross-attends to, `(rows, J, num_latents, width)`, and of which sentences, `(rows, J)`.
    """
    if attention_implementation(model.config) == "flex_attention" and cache is None and latents is None:
        # On a CPU, torch 2.13 does not compile the kernel for a block mask of several rows: they lie end to end.
        output = model(
            inputs_embeds=inputs_embeds.flatten(0, 1)[None],
            position_ids=stream.position_ids.flatten()[None],
            attention_mask=flex_mask(stream, causal, context_length),
            use_cache=False,
            **kwargs,
        )
        return states_of(output, kwargs, lambda states: states.view(*inputs_embeds.shape[:2], -1))
    key = stream if cache is None else cache.append(stream)
    crosses = cache is not None and latents is not None
    output = model(
        inputs_embeds=inputs_embeds,
        position_ids=stream.position_ids,
        attention_mask=stream_mask(model, stream, key, causal, context_length, inputs_embeds.dtype),
        past_key_values=EncoderDecoderCache(cache, DynamicCache()) if crosses else cache,
        use_cache=cache is not None,
        **kwargs,
        **cross_attention_kwargs(model, stream, latents),
    )
    return states_of(output, kwargs, lambda states: states.to(inputs_embeds.dtype))


def run_rows(
    model: nn.Module, inputs_embeds: torch.Tensor, stream: Stream, context_length: int, **kwargs: Any
) -> States:
    """As `run_stream` of a causal model, of whole rows: short ones share a row, so that little is padding."""
    size = (stream.index >= 0).sum(1)
    found = shared_rows(size.tolist())
    rows, width = max(found[0]) + 1, stream.index.shape[1]
    if rows == len(size) or attention_implementation(model.config) == "flex_attention":  # there rows lie end to end
        return run_stream(model, inputs_embeds, stream, True, context_length, **kwargs)
    row, number, first = torch.tensor(found, device=size.device)
    column = torch.arange(width, device=size.device)
    place = (row * width + first)[:, None] + column  # (rows before, width)
    real = column < size[:, None]
    source = place.new_full((rows * width,), -1)
    source[place[real]] = torch.arange(place.numel(), device=size.device).view_as(place)[real]
    source = source.view(rows, width)
    # What shares a row is further apart than the context reaches, and has sentences of its own.
    index = column + (first + number * context_length)[:, None]
    sentence = stream.sentence + (number * (stream.sentence.max() + 1))[:, None]
    shared = Stream(sentence, index, stream.position_ids, stream.prefix)
    shared = shared.map(lambda values: values.flatten()[source.clamp(min=0)])
    shared.index = shared.index.masked_fill(source < 0, -1)
    embeds = inputs_embeds.flatten(0, 1)[source.clamp(min=0)]
    states = run_stream(model, embeds, shared, True, context_length, **kwargs)
    place = place.where(real, 0)
    return each(lambda layer: layer.flatten(0, 1)[place], states)


def states_of(output: Any, kwargs: dict, function: Callable) -> States:
    """What a function makes of the hidden states of an output that `kwargs` asked for."""
    return each(function, (output.last_hidden_state, *(output.hidden_states if kwargs else ())))


def each(function: Callable, states: Iterable[torch.Tensor | None]) -> States:
    """What a function makes of each of the states, but for those not wanted."""
    return tuple(None if layer is None else function(layer) for layer in states)


def run_packed(
    model: nn.Module,
    inputs_embeds: torch.Tensor,
    piece: torch.Tensor,
    position_ids: torch.Tensor,
    causal: bool,
    packed: bool | None = None,
    latents: torch.Tensor | None = None,
    **kwargs: Any,
) -> States:
    """The hidden states, `(N, width)`, of N positions in pieces that never see each other.

    Args:
        inputs_embeds: `(N, width)`.
        piece: `(N,)` the piece of each, `0..S-1` in order.
        position_ids: `(N,)`.
        causal: Whether later positions of a piece are hidden.
        packed: One row, or several. By default one where the attention kernel profits from it.
        latents: What each piece cross-attends to, `(S, num_latents, width)`.
    """
    implementation = attention_implementation(model.config)
    packs_flash = "flash" in implementation and latents is None
    lengths = torch.bincount(piece)
    one_row = (packs_flash or implementation == "flex_attention") if packed is None else packed
    rows = padded_rows(lengths.sum()[None] if one_row else lengths)  # (R, L)
    real = rows >= 0
    rows = rows.clamp(min=0)

    def unpacked(states: torch.Tensor) -> torch.Tensor:
        return states[real].to(inputs_embeds.dtype)  # in order, so nothing has to be put back

    if one_row and packs_flash:
        output = model(
            inputs_embeds=inputs_embeds[rows],
            position_ids=position_ids[rows],
            use_cache=False,
            is_causal=causal,
            **kwargs,
            **flash_attention_kwargs(lengths),
        )
        return states_of(output, kwargs, unpacked)
    index = torch.arange(rows.shape[1], device=rows.device).expand_as(rows).masked_fill(~real, -1)
    stream = Stream(piece[rows], index, position_ids[rows], torch.zeros_like(rows))
    of_rows = None if latents is None else latents_of_rows(latents, stream, real)
    return each(unpacked, run_stream(model, inputs_embeds[rows], stream, causal, latents=of_rows, **kwargs))


def stream_mask(
    model: nn.Module, query: Stream, key: Stream, causal: bool, context_length: int, dtype: torch.dtype
) -> torch.Tensor:
    """The mask as a tensor.

    Args:
        query, key: Streams with tensors `(R, Q)` and `(R, K)`; the queries are the last Q of the keys.
    """
    allowed = visible(
        query.map(lambda values: values[:, :, None]),
        key.map(lambda values: values[:, None, :]),
        causal,
        context_length,
    )  # (R, Q, K)
    # Padding sees itself: a softmax over nothing is NaN, which a masked key would still spread.
    allowed.diagonal(key.index.shape[1] - query.index.shape[1], 1, 2).fill_(True)
    return mask_tensor(model, allowed, dtype)


def flex_mask(stream: Stream, causal: bool, context_length: int) -> Any:
    """The rule of `visible` as the block mask of flex attention, for a stream with tensors `(R, L)` that sees itself,
    its rows end to end.

    From which position on each one sees, and up to which one it sees (if causal: is seen), is kept in one tensor: with
    more of them, torch 2.13 does not compile the kernel on CPU.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    rows, length = stream.index.shape
    position = torch.arange(length, device=stream.index.device).expand(rows, -1)
    padding = stream.index < 0
    sentence_begins = nn.functional.pad(stream.sentence.diff() != 0, (1, 0), value=True) | padding
    first = torch.where(sentence_begins, position, 0).cummax(1).values
    sentence_ends = nn.functional.pad(sentence_begins[:, 1:], (0, 1), value=True)
    last = torch.where(sentence_ends, position, length - 1).flip(1).cummin(1).values.flip(1)
    if causal:
        seen_from = torch.minimum(first, (position - context_length).clamp(min=0))
        first = torch.where((stream.prefix <= 1) & ~padding, seen_from, first)
        last = torch.where((stream.prefix > 0) & ~padding, last, length - 1)

    bounds = torch.stack([first, last]) + length * torch.arange(rows, device=position.device)[:, None]
    bounds = bounds.flatten(1)[None]  # (1, 2, R * L)

    def rule(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        sees = key >= bounds[batch, 0, query]
        if causal:
            return sees & (key <= query) & (query <= bounds[batch, 1, key])
        return sees & (key <= bounds[batch, 1, query])

    return create_block_mask(rule, 1, None, rows * length, rows * length, device=str(position.device))


def mask_tensor(model: nn.Module, allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`(R, Q, K)` bool as the 4D mask of the model's attention: bool for sdpa, additive for eager."""
    allowed = allowed[:, None]
    if attention_implementation(model.config) != "eager":
        let_sdpa_take_tensors(attention_implementation(model.config))
        return allowed
    if torch.is_autocast_enabled(allowed.device.type):
        dtype = torch.float32
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def let_sdpa_take_tensors(implementation: str | None) -> None:
    """From now on, a kernel of flash or flex attention leaves 4D tensors as masks, which it cannot take, to sdpa.

    Registered under the kernel's own name, it serves models whose configs say that name; nothing in them changes.
    """
    kernel = ALL_ATTENTION_FUNCTIONS.get(implementation)
    if implementation in (None, "eager", "sdpa") or kernel is None or hasattr(kernel, "leaves_tensors_to_sdpa"):
        return

    @wraps(kernel)
    def attention(module, query, key, value, attention_mask, **kwargs):
        is_tensor = isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 4
        function = ALL_ATTENTION_FUNCTIONS["sdpa"] if is_tensor else kernel
        return function(module, query, key, value, attention_mask, **kwargs)

    setattr(attention, "leaves_tensors_to_sdpa", True)  # noqa: B010  a function has no such attribute for mypy
    ALL_ATTENTION_FUNCTIONS.register(implementation, attention)


def cross_attention_kwargs(
    model: nn.Module, query: Stream, latents: tuple[torch.Tensor, torch.Tensor] | None
) -> dict[str, torch.Tensor]:
    """Arguments that make each position attend to the latents of its own sentence; a row's padding to all of them."""
    if latents is None:
        return {}
    states, sentence = latents[0].flatten(1, 2), latents[1].repeat_interleave(latents[0].shape[2], 1)
    allowed = query.sentence[:, :, None] == sentence[:, None, :]  # (R, Q, J * num_latents)
    allowed = allowed | ~allowed.any(-1, keepdim=True)
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask_tensor(model, allowed, states.dtype)}


def latents_of_rows(latents: torch.Tensor, stream: Stream, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The latents of the pieces that lie in each row, `(R, J, num_latents, width)` of `(S, num_latents, width)`, and
    which pieces these are, `(R, J)`."""
    first = stream.sentence[:, :1]
    last = stream.sentence.masked_fill(~real, 0).amax(1, keepdim=True)
    piece = first + torch.arange(int((last - first).max()) + 1, device=first.device)  # (R, most pieces of a row)
    return latents[piece.clamp(max=len(latents) - 1)], piece.masked_fill(piece > last, -1)


def padded_rows(lengths: torch.Tensor) -> torch.Tensor:
    """Indices `(R, L)`, -1 for padding, of what lies end to end in pieces of these lengths: several pieces to a row,
    in rows of similar length, so that little is padding."""
    row = (lengths.cumsum(0) - lengths) // (PIECES_PER_ROW * lengths.max())
    of_rows = lengths.new_zeros(int(row[-1]) + 1).index_add(0, row, lengths)
    first = of_rows.cumsum(0) - of_rows
    position = torch.arange(int(of_rows.max()), device=lengths.device)
    return (first[:, None] + position).masked_fill(position >= of_rows[:, None], -1)


def shared_rows(sizes: list[int]) -> list[list[int]]:
    """Where each of several rows goes if they share rows as long as the longest: the longest first, each into the
    first row with room for it.

    Returns:
        Which row each one goes to, how many are there before it, and the position at which it begins.
    """
    width, taken = max(sizes), [[0, 0] for _ in sizes]  # of each row that may be needed: how many, and up to where
    found = [[0] * len(sizes) for _ in range(3)]
    for index in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        row = next(row for row, (_, end) in enumerate(taken) if end + sizes[index] <= width)
        for values, value in zip(found, (row, *taken[row]), strict=True):
            values[index] = value
        taken[row] = [taken[row][0] + 1, taken[row][1] + sizes[index]]
    return found


def flash_attention_kwargs(lengths: torch.Tensor) -> dict:
    """The packing arguments of flash attention, with each piece a sequence of its own."""
    bounds = nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(lengths.max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
