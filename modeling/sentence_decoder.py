"""Where latents become a sentence (SentenceVAE, arXiv 2408.00655, section 3.1)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, DynamicCache, EncoderDecoderCache

from .configuration_sentence_vae import SentenceVaeConfig
from .sentence_encoder import all_rows, project
from .sentence_segmentation import SentenceLayout
from .stream_attention import (
    HiddenStates,
    cross_attention_kwargs,
    gather_stream,
    mask_attention,
    run_stream,
    stream_mask,
)
from .stream_layout import DecoderPositions, Stream, decoder_positions


class SentenceDecoder(nn.Module):
    """Writes sentences from their latents; its transformer is causal and sees `decoder_context_length` back."""

    def __init__(self, config: SentenceVaeConfig, token_width: int):
        super().__init__()
        self.config = config
        self.packed: bool | None = None
        self.model = AutoModel.from_config(config.sentence_decoder_config)
        self._no_split_modules = self.model._no_split_modules  # a model collects its children's
        width = self.model.get_input_embeddings().embedding_dim
        self.model.set_input_embeddings(None)
        self.embed_projection = project(token_width, width)
        self.latent_prefix = nn.Linear(config.latent_size, width)
        if config.conditioning == "cross_attention":
            self.sentence_start = nn.Embedding(1, width)
        self.output_projection = project(width, token_width)
        if config.stop_head:
            self.stop_head = nn.Linear(token_width, 1)

    def forward(
        self,
        latents: torch.Tensor,
        token_embeds: torch.Tensor,
        positions: DecoderPositions,
        context_length: int | None = None,
        cache: Any = None,
        hidden_states: HiddenStates | None = None,
    ) -> torch.Tensor:
        """
        Args:
            latents: `(J, num_latents, latent_size)` of the sentences that begin.
            token_embeds: `(N, token_width)`.
            positions: Where these J prefixes and N tokens stand.
            context_length: By default the config's `decoder_context_length`.
            cache (`SllmCache`): Holds the positions before; it is updated.
            hidden_states: Takes in the states of the other layers.

        Returns:
            `(F, token_width)`, one state for each position of the stream.
        """
        if context_length is None:
            context_length = self.config.decoder_context_length
        token_embeds, latents = drop_inputs(self.config, token_embeds, latents, self.training)
        if self.training and self.config.context_dropout > 0 and torch.rand(()) < self.config.context_dropout:
            context_length = 0  # what the text before says has to come through the latents
        inputs_embeds, memory = self.embed(latents, token_embeds, positions, repeats=context_length > 0)
        hidden_states = hidden_states or HiddenStates()
        if cache is None:
            states = run_stream(
                self.model, inputs_embeds, positions.stream, True, context_length, self.packed, memory, hidden_states
            )
        else:
            states = self.step(inputs_embeds, positions.stream, context_length, cache, memory, hidden_states)
        return self.output_projection(states)

    def embed(
        self, latents: torch.Tensor, token_embeds: torch.Tensor, positions: DecoderPositions, repeats: bool
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, Stream] | None]:
        """The stream's embeddings `(F, width)`, and the latents to cross-attend to, if the model does. Where it
        `repeats`, the last of a prefix is the token before as well: what comes next is predicted from there."""
        token_embeds = self.embed_projection(token_embeds)
        prefix = self.latent_prefix(latents.to(self.latent_prefix.weight.dtype)).to(token_embeds.dtype)
        memory = None
        if self.config.conditioning == "cross_attention":
            begins = positions.prefix_slot[:, 0].repeat_interleave(latents.shape[1])
            memory = (prefix.flatten(0, 1), positions.stream.map(lambda values: values[begins]))
            prefix = all_rows(self.sentence_start, latents.device).to(token_embeds.dtype).expand(len(latents), -1, -1)
        if repeats:
            before = F.pad(token_embeds, (0, 0, 0, 1))[positions.followed_token]  # at -1 zeros
            prefix = torch.cat([prefix[:, :-1], prefix[:, -1:] + before[:, None]], 1)
        embeds = token_embeds.new_zeros(len(positions.stream.row), token_embeds.shape[-1])
        embeds = embeds.index_copy(0, positions.token_slot, token_embeds)
        return embeds.index_copy(0, positions.prefix_slot.flatten(), prefix.flatten(0, 1)), memory

    def step(
        self,
        inputs_embeds: torch.Tensor,
        stream: Stream,
        context_length: int,
        cache: Any,
        memory: tuple[torch.Tensor, Stream] | None,
        hidden_states: HiddenStates,
    ) -> torch.Tensor:
        """As `run_stream`, after the positions that the cache holds; each row of the batch is one row."""
        rows = cache.stream_rows(stream)  # (batch, Q), -1 where a row has fewer positions
        query = gather_stream(stream, rows)
        query.row = torch.arange(len(rows), device=rows.device)[:, None].expand_as(rows)
        real = rows >= 0
        memory = None if memory is None else cache.open_memory(*memory)
        outputs = self.run_cached(
            inputs_embeds[rows.clamp(min=0)], query, context_length, cache, memory, **hidden_states.kwargs
        )
        hidden_states.add(outputs, rows, len(inputs_embeds))
        states = outputs.last_hidden_state
        return inputs_embeds.new_zeros(inputs_embeds.shape).index_put(
            (rows[real],), states[real].to(inputs_embeds.dtype)
        )

    def extend(self, token_embeds: torch.Tensor, query: Stream, cache: Any) -> torch.Tensor:
        """States `(batch, Q, token_width)` of tokens `(batch, Q, token_width)` that continue the open sentences; all
        of the stream's tensors are `(batch, Q)`."""
        inputs_embeds, kwargs = self.embed_projection(token_embeds), {}
        if self.config.conditioning == "cross_attention":
            kwargs["encoder_hidden_states"] = cache.open_latents
        outputs = self.run_cached(inputs_embeds, query, self.config.decoder_context_length, cache, **kwargs)
        return self.output_projection(outputs.last_hidden_state.to(inputs_embeds.dtype))

    def run_cached(
        self,
        inputs_embeds: torch.Tensor,
        query: Stream,
        context_length: int,
        cache: Any,
        memory: tuple[torch.Tensor, Stream] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The transformer's output for new positions `(batch, Q)`, after those that the cache holds."""
        with mask_attention(self.model):
            key = cache.append_slots(query)
            past_key_values = cache.decoder
            if self.config.conditioning == "cross_attention":
                past_key_values = EncoderDecoderCache(cache.decoder, DynamicCache())
            return self.model(
                inputs_embeds=inputs_embeds,
                position_ids=query.position_ids,
                attention_mask=stream_mask(self.model, query, key, True, context_length, inputs_embeds.dtype),
                past_key_values=past_key_values,
                use_cache=True,
                **kwargs,
                **cross_attention_kwargs(self.model, query, memory),
            )

    def write(
        self, latents: torch.Tensor, embed_tokens: Callable, lm_head: Callable, closes: Callable, max_length: int
    ) -> list[torch.Tensor]:
        """Greedily writes one sentence from each of the `(S, num_latents, latent_size)` latents, without context.

        Args:
            embed_tokens, lm_head: Ids to embeddings, states to logits.
            closes: Whether token ids `(S,)` close a sentence of so many tokens `(S,)` before.

        Returns:
            S tensors of token ids, each up to and with the token that closes it.
        """
        prefix, kwargs = self.latent_prefix(latents.to(self.latent_prefix.weight.dtype)), {}
        if self.config.conditioning == "cross_attention":
            kwargs["encoder_hidden_states"] = prefix
            prefix = all_rows(self.sentence_start, latents.device).expand(len(latents), -1, -1)
        past_key_values = DynamicCache()
        inputs_embeds, position = prefix, prefix.new_zeros(prefix.shape[:2], dtype=torch.long)
        length = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        written: list[torch.Tensor] = []
        open_ = torch.ones_like(length, dtype=torch.bool)
        with mask_attention(self.model):
            while open_.any() and len(written) < max_length:
                states = self.model(
                    inputs_embeds=inputs_embeds,
                    position_ids=position,
                    # Without it, prefix vectors that share a position are taken for packed sequences.
                    attention_mask=torch.ones(
                        len(latents), prefix.shape[1] + len(written), dtype=torch.long, device=latents.device
                    ),
                    past_key_values=past_key_values,
                    use_cache=True,
                    **kwargs,
                ).last_hidden_state
                token_ids = lm_head(self.output_projection(states[:, -1])).argmax(-1)
                written.append(token_ids)
                closed = closes(token_ids, length)
                length += open_
                open_ &= ~closed
                inputs_embeds = self.embed_projection(embed_tokens(token_ids))[:, None].to(prefix.dtype)
                position = torch.full_like(position[:, :1], len(written))
        token_ids = torch.stack(written, 1)
        return [row[:size] for row, size in zip(token_ids, length.tolist(), strict=True)]


def drop_inputs(
    config: SentenceVaeConfig, token_embeds: torch.Tensor, latents: torch.Tensor, training: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hides a share of the decoder's input tokens, and of the latents, in training: whole vectors become zero."""
    if training and config.token_dropout > 0:
        token_embeds = token_embeds * (torch.rand_like(token_embeds[:, :1]) >= config.token_dropout)
    if training and config.latent_dropout > 0:
        latents = latents * (torch.rand_like(latents[:, :1, :1]) >= config.latent_dropout)
    return token_embeds, latents


def reconstruction_states(
    decoder: SentenceDecoder,
    layout: SentenceLayout,
    token_embeds: torch.Tensor,
    latents: torch.Tensor,
    context_length: int | None = None,
    hidden_states: HiddenStates | None = None,
) -> tuple[torch.Tensor, DecoderPositions]:
    """The decoder's states given each sentence's own latents.

    Args:
        token_embeds: `(N, width)`.
        latents: `(S, num_latents, latent_size)`.
        hidden_states: Takes in the states of the other layers.

    Returns:
        `(F, width)`, and where the tokens stand among these: a token is predicted from the position before its own.
    """
    last_of_row = layout.token_rank == layout.row_length[layout.token_row] - 1
    is_last = torch.ones_like(last_of_row)
    is_last[:-1] = layout.token_sentence[1:] != layout.token_sentence[:-1]
    window = decoder.config.decoder_context_length if context_length is None else context_length
    positions = decoder_positions(
        layout, decoder.config.prefix_length, window == 0, layout.row_length > 0, is_last & ~last_of_row
    )
    states = decoder(latents, token_embeds, positions, context_length=window, hidden_states=hidden_states)
    return states, positions


def closed_reconstruction(
    decoder: SentenceDecoder,
    layout: SentenceLayout,
    token_embeds: torch.Tensor,
    latents: torch.Tensor,
    targets: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The states from which the tokens of closed sentences are reconstructed, `(T, width)`, and their targets `(T,)`.

    Args:
        token_embeds: `(N, width)`.
        latents: `(C, num_latents, latent_size)` of the C closed sentences.
        targets: `(N,)`, -100 for none.
    """
    closed, kept = layout.sentence_closed, layout.closed_sentences()
    if not closed.any():
        # Where weights are sharded, every process has to call every part: here on sentences that do not count.
        closed, kept, targets = ~closed, layout, torch.full_like(targets, -100)
        latents = latents.new_zeros(len(closed), *latents.shape[1:])
    tokens = closed[layout.token_sentence]
    states, positions = reconstruction_states(decoder, kept, token_embeds[tokens], latents, context_length=0)
    return states[positions.token_slot - 1], targets[tokens]


def scatter_tokens(values: torch.Tensor, layout: SentenceLayout, shape: Sequence[int]) -> torch.Tensor:
    """Values `(N, …)` of the tokens at their places in `(batch, length, …)`; zero at padding."""
    flat = values.new_zeros(shape[0] * shape[1], *values.shape[1:])
    return flat.index_copy(0, layout.token_index, values).view(*shape, *values.shape[1:])
