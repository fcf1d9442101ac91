"""Where latents become a sentence (SentenceVAE, arXiv 2408.00655, section 3.1)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, DynamicCache, EncoderDecoderCache

from .configuration_sentence_vae import SentenceVaeConfig
from .sentence_encoder import all_rows, project
from .sentence_segmentation import SentenceLayout
from .stream_attention import States, mask_tensor, run_packed, run_stream
from .stream_layout import DecoderPositions, Stream, lay_out, pad_rows


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
        output_hidden_states: bool | list[int] = False,
    ) -> tuple[torch.Tensor, States]:
        """
        Args:
            latents: `(batch, J, num_latents, latent_size)` of the sentences that begin in each row.
            token_embeds: `(N, token_width)` of the tokens that stand at these positions.
            positions: Where prefixes and tokens stand.
            context_length: By default the config's `decoder_context_length`.
            cache (`SllmCache`): Holds the positions before; it is updated.
            output_hidden_states: Whether to return the states of the layers, or of which; as in transformers.

        Returns:
            `(batch, positions, token_width)`, and such states of the input and of each layer, the last one's being
            the first of these two; `None` in it for a layer not wanted.
        """
        if context_length is None:
            context_length = self.config.decoder_context_length
        token_embeds, latents = drop_inputs(self.config, token_embeds, latents, self.training)
        if self.training and self.config.context_dropout > 0 and torch.rand(()) < self.config.context_dropout:
            context_length = 0  # what the text before says has to come through the latents
        inputs_embeds, attended = self.embed(latents, token_embeds, positions, repeats=context_length > 0)
        kwargs = {} if output_hidden_states is False else {"output_hidden_states": output_hidden_states}
        if cache is None and context_length == 0:
            states, layers = self._run_alone(inputs_embeds, positions.stream, attended, **kwargs)
        else:
            if attended is not None:
                attended = self._with_sentences(attended, positions.stream, cache)
            states, layers = self.run(inputs_embeds, positions.stream, context_length, cache, attended, **kwargs)
        states = self.output_projection(states)
        if layers is not None:
            layers = (*layers[:-1], None if layers[-1] is None else states)
        return states, layers

    def embed(
        self, latents: torch.Tensor, token_embeds: torch.Tensor, positions: DecoderPositions, repeats: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The stream's embeddings `(batch, positions, width)`, and the latents to cross-attend to, if the model does,
        `(batch, J, num_latents, width)`. Where it `repeats`, the last of a prefix is the token before as well: what
        comes next is predicted from there."""
        prefix = positions.stream.prefix[..., None]
        tokens = F.pad(self.embed_projection(token_embeds), (0, 0, 0, 1))[positions.token]  # at -1 zeros
        vectors, attended = self.latent_prefix(latents.to(self.latent_prefix.weight.dtype)).to(tokens.dtype), None
        if self.config.conditioning == "cross_attention":
            attended = vectors
            vectors = all_rows(self.sentence_start, latents.device).to(tokens.dtype)
            vectors = vectors.expand(*latents.shape[:2], 1, -1)
        vectors = F.pad(vectors.flatten(1, 2), (0, 0, 0, 1))  # (batch, J * prefix_length + 1, width)
        vectors = vectors.gather(1, positions.vector[..., None].expand(-1, -1, vectors.shape[-1]))
        tokens = tokens * ((prefix == 0) | (prefix == 1) & repeats)
        return torch.where(prefix > 0, vectors + tokens, tokens), attended

    def run(
        self,
        inputs_embeds: torch.Tensor,
        stream: Stream,
        context_length: int,
        cache: Any = None,
        attended: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, States]:
        """The transformer's states, as of `run_stream`, for new positions `(batch, Q)` after those in the cache."""
        if cache is None:
            return run_stream(self.model, inputs_embeds, stream, True, context_length, latents=attended, **kwargs)
        past_key_values = cache.decoder
        if self.config.conditioning == "cross_attention":
            past_key_values = EncoderDecoderCache(cache.decoder, DynamicCache())
        key = cache.decoder.append(stream)
        return run_stream(
            self.model, inputs_embeds, stream, True, context_length, key, past_key_values, attended, **kwargs
        )

    def extend(self, token_embeds: torch.Tensor, stream: Stream, cache: Any) -> torch.Tensor:
        """States `(batch, Q, token_width)` of tokens `(batch, Q, token_width)` that continue the open sentences."""
        inputs_embeds, attended = self.embed_projection(token_embeds), None
        if self.config.conditioning == "cross_attention":
            attended = cache.open_latents, cache.num_sentences[:, None].expand(cache.open_latents.shape[:2])
        states, _ = self.run(inputs_embeds, stream, self.config.decoder_context_length, cache, attended)
        return self.output_projection(states)

    def _run_alone(
        self, inputs_embeds: torch.Tensor, stream: Stream, attended: torch.Tensor | None, **kwargs: Any
    ) -> tuple[torch.Tensor, States]:
        """The states of sentences that see nothing before them, packed; laid out as the stream."""
        real = stream.index >= 0
        row = torch.arange(len(real), device=real.device)[:, None].expand_as(real)
        sentence = torch.stack([row[real], stream.sentence[real]])
        sentence, piece = sentence.unique_consecutive(dim=1, return_inverse=True)
        if attended is not None:
            attended = attended[sentence[0], sentence[1]]  # (S, num_latents, width)
        states, layers = run_packed(
            self.model, inputs_embeds[real], piece, stream.position_ids[real], True, self.packed, attended, **kwargs
        )

        def laid_out(states: torch.Tensor) -> torch.Tensor:
            return inputs_embeds.new_zeros(*real.shape, states.shape[-1]).masked_scatter(real[..., None], states)

        if layers is not None:
            layers = tuple(None if layer is None else laid_out(layer) for layer in layers)
        return laid_out(states), layers

    def _with_sentences(self, attended: torch.Tensor, stream: Stream, cache: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The latents `(batch, J, num_latents, width)` of the sentences that begin, with those of the sentences open
        before: `(batch, L, width)`, and the sentence that each is of, `(batch, L)`."""
        if cache is not None:
            return cache.attend(attended, stream)
        sentence = torch.arange(attended.shape[1], device=attended.device).repeat_interleave(attended.shape[2])
        return attended.flatten(1, 2), sentence.expand(len(attended), -1)

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
        while open_.any() and len(written) < max_length:
            # Without a mask, prefix vectors that share a position would be taken for packed sequences.
            size = prefix.shape[1] + len(written)
            allowed = torch.ones(size, size, dtype=torch.bool, device=latents.device).tril()
            allowed = allowed[-inputs_embeds.shape[1] :].expand(len(latents), -1, -1)
            states = self.model(
                inputs_embeds=inputs_embeds,
                position_ids=position,
                attention_mask=mask_tensor(self.model, allowed, inputs_embeds.dtype),
                past_key_values=past_key_values,
                use_cache=True,
                **kwargs,
            ).last_hidden_state
            token_ids = lm_head(self.output_projection(states[:, -1]))
            token_ids = token_ids.argmax(-1)
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
    """Hides a share of the decoder's input tokens `(N, width)`, and of the sentences' latents `(…, num_latents,
    latent_size)`, in training: whole vectors, and all latents of a sentence, become zero."""
    if training and config.token_dropout > 0:
        token_embeds = token_embeds * (torch.rand_like(token_embeds[:, :1]) >= config.token_dropout)
    if training and config.latent_dropout > 0:
        latents = latents * (torch.rand_like(latents[..., :1, :1]) >= config.latent_dropout)
    return token_embeds, latents


def reconstruction_states(
    decoder: SentenceDecoder,
    layout: SentenceLayout,
    token_embeds: torch.Tensor,
    latents: torch.Tensor,
    context_length: int | None = None,
    output_hidden_states: bool | list[int] = False,
) -> tuple[torch.Tensor, torch.Tensor, States]:
    """The decoder's states where each sentence is given its own latents.

    Args:
        token_embeds: `(N, width)`.
        latents: `(S, num_latents, latent_size)`.
        output_hidden_states: See `SentenceDecoder.forward`.

    Returns:
        `(N, width)` from which each token is predicted, `(N, width)` at each token, and, if they are wanted, such
        states as the first of the input and of each layer.
    """
    # Between the last token of a sentence and the first of the next one in the row is that one's prefix.
    precedes = F.pad((layout.token_sentence.diff() != 0) & (layout.token_row.diff() == 0), (0, 1))
    window = decoder.config.decoder_context_length if context_length is None else context_length
    positions = lay_out(layout.mask, layout.scatter(precedes), decoder.config.prefix_length, window == 0)
    of_rows, _ = pad_rows(latents, layout.sentence_row, len(layout.mask))
    states, layers = decoder(
        of_rows, token_embeds, positions, context_length=window, output_hidden_states=output_hidden_states
    )
    row, slot = layout.token_row, positions.token_slot.flatten()[layout.token_index]
    if layers is not None:
        layers = tuple(None if layer is None else layer[row, slot - 1] for layer in layers)
    return states[row, slot - 1], states[row, slot], layers


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
    states, _, _ = reconstruction_states(decoder, kept, token_embeds[tokens], latents, context_length=0)
    return states, targets[tokens]
