"""Where latents become a sentence (SentenceVAE, arXiv 2408.00655, section 3.1)."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel

from .configuration_sentence_vae import SentenceVaeConfig
from .sentence_encoder import all_rows, project
from .sentence_segmentation import SentenceLayout
from .stream_attention import States, each, run_packed, run_rows, run_stream
from .stream_cache import DecoderCache
from .stream_layout import DecoderPositions, Stream, lay_out, pad_rows
from .validation_inputs import check_length


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
        context_length: int,
        cache: Any = None,
        output_hidden_states: bool | list[int] = False,
    ) -> States:
        """
        Args:
            latents: `(batch, J, num_latents, latent_size)` of the sentences that begin in each row.
            token_embeds: `(N, token_width)` of the tokens that stand at these positions.
            positions: Where prefixes and tokens stand.
            context_length: How many positions back it sees, beyond the sentence.
            cache (`SllmCache`): Holds the positions before; it is updated.
            output_hidden_states: Whether to return the states of the layers, or of which; as in transformers.

        Returns:
            `(batch, positions, token_width)`, and such states as are wanted of the input and of each layer, of which
            the last one's are the first again.
        """
        token_embeds, latents = drop_inputs(self.config, token_embeds, latents, self.training)
        if self.training and self.config.context_dropout > 0 and torch.rand(()) < self.config.context_dropout:
            context_length = 0  # what the text before says has to come through the latents
        inputs_embeds, attended = self.embed(latents, token_embeds, positions, repeats=context_length > 0)
        kwargs = {} if output_hidden_states is False else {"output_hidden_states": output_hidden_states}
        if cache is None and context_length == 0:
            states, *layers = self._run_alone(inputs_embeds, positions.stream, attended, **kwargs)
        elif cache is None and attended is None:
            states, *layers = run_rows(self.model, inputs_embeds, positions.stream, context_length, **kwargs)
        else:
            if attended is not None and cache is not None:
                attended = cache.attend(attended, positions.stream)
            elif attended is not None:
                number = torch.arange(attended.shape[1], device=attended.device)
                attended = attended, number.expand(len(attended), -1)
            past = None if cache is None else cache.decoder
            states, *layers = run_stream(
                self.model, inputs_embeds, positions.stream, True, context_length, past, attended, **kwargs
            )
        states = self.output_projection(states)
        if layers:
            layers[-1] = None if layers[-1] is None else states
        return states, *layers

    def embed(
        self, latents: torch.Tensor, token_embeds: torch.Tensor, positions: DecoderPositions, repeats: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The stream's embeddings `(batch, positions, width)`, and the latents to cross-attend to, if the model does,
        `(batch, J, num_latents, width)`. Where it `repeats`, the last of a prefix is the token before as well: what
        comes next is predicted from there."""
        prefix = positions.stream.prefix[..., None]
        tokens = F.pad(self.embed_projection(token_embeds), (0, 0, 0, 1))[positions.token]  # at -1 zeros
        vectors, attended = self.prefix_of(latents, tokens.dtype)
        vectors = F.pad(vectors.flatten(1, 2), (0, 0, 0, 1))  # (batch, J * prefix_length + 1, width)
        vectors = vectors.gather(1, positions.vector[..., None].expand(-1, -1, vectors.shape[-1]))
        tokens = tokens * ((prefix == 0) | (prefix == 1) & repeats)
        return torch.where(prefix > 0, vectors + tokens, tokens), attended

    def prefix_of(self, latents: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The vectors `(…, prefix_length, width)` before the sentences of latents `(…, num_latents, latent_size)`, and
        what these cross-attend to, `(…, num_latents, width)`, if the model does."""
        vectors = self.latent_prefix(latents.to(self.latent_prefix.weight.dtype)).to(dtype)
        if self.config.conditioning == "prefix":
            return vectors, None
        return all_rows(self.sentence_start, latents.device).to(dtype).expand(*latents.shape[:-2], 1, -1), vectors

    def read_on(
        self, inputs_embeds: torch.Tensor, stream: Stream, cache: DecoderCache, attended: torch.Tensor | None
    ) -> torch.Tensor:
        """States `(batch, Q, token_width)` of positions of one sentence in each row, which cross-attend to its latents
        `(batch, num_latents, width)`, if the model does."""
        of_sentence = None
        if attended is not None:
            of_sentence = attended[:, None], stream.sentence[:, :1]
        window = self.config.decoder_context_length
        return self.output_projection(
            run_stream(self.model, inputs_embeds, stream, True, window, cache, of_sentence)[0]
        )

    def _run_alone(
        self, inputs_embeds: torch.Tensor, stream: Stream, attended: torch.Tensor | None, **kwargs: Any
    ) -> States:
        """The states of sentences that see nothing before them, packed; laid out as the stream."""
        real = stream.index >= 0
        row = torch.arange(len(real), device=real.device)[:, None].expand_as(real)
        sentence = torch.stack([row[real], stream.sentence[real]])
        sentence, piece = sentence.unique_consecutive(dim=1, return_inverse=True)
        if attended is not None:
            attended = attended[sentence[0], sentence[1]]  # (S, num_latents, width)
        states = run_packed(
            self.model, inputs_embeds[real], piece, stream.position_ids[real], True, self.packed, attended, **kwargs
        )

        def laid_out(states: torch.Tensor) -> torch.Tensor:
            return inputs_embeds.new_zeros(*real.shape, states.shape[-1]).masked_scatter(real[..., None], states)

        return each(laid_out, states)


class SideBySide:
    """The decoder, writing a sentence from each of the latents `(S, num_latents, latent_size)`, before which it sees
    nothing. After a text, it also goes on where that ends, in a first row.

    Args:
        past (`SllmCache`): The text, of a single row.
    """

    def __init__(self, decoder: SentenceDecoder, latents: torch.Tensor, past: Any = None):
        self.decoder, self.config = decoder, decoder.config
        self.prefix, self.attended = decoder.prefix_of(latents, decoder.latent_prefix.weight.dtype)
        # Where each row's next token stands. The prefix before it is at position 0.
        self.sentence = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        self.index, self.position_ids = self.sentence + self.config.prefix_length, self.sentence + 1
        self.cache = DecoderCache()
        if past is not None:
            before = past.num_tokens if self.config.decoder_context_length else past.open_length
            self.sentence = torch.cat([past.num_sentences, self.sentence])
            self.index = torch.cat([past.num_positions, self.index])
            self.position_ids = torch.cat([before + 1, self.position_ids])
            self.cache = copy.deepcopy(past.decoder)
            self.cache.batch_repeat_interleave(len(self.index))
            self.cache.slots = self.cache.slots.map(lambda values: values.repeat(len(self.index), 1))
            self.cache.slots.index[1:] = -1
            self.cache.keep(self.cache.slots.index >= past.first_needed())
            self.prefix = F.pad(self.prefix, (0, 0, 0, 0, 1, 0))  # of the first row nobody reads it
            if self.attended is not None:
                self.attended = torch.cat([past.open_latents, self.attended.to(past.open_latents.dtype)])

    def begin(self) -> torch.Tensor:
        """States `(rows, width)` from which each row's first token is predicted; of no meaning where a text ends."""
        index = torch.arange(self.prefix.shape[1], device=self.index.device).repeat(len(self.index), 1)
        index = index.masked_fill(self.index[:, None] > self.prefix.shape[1], -1)
        return self._run(self.prefix, index, torch.zeros_like(index))

    def extend(self, token_embeds: torch.Tensor, is_open: torch.Tensor) -> torch.Tensor:
        """States `(rows, width)` after one token more, of `(rows, token_width)`, of each row that is open."""
        index, position_ids = self.index.masked_fill(~is_open, -1), self.position_ids.masked_fill(~is_open, 0)
        self.index, self.position_ids = self.index + 1, self.position_ids + 1
        return self._run(self.decoder.embed_projection(token_embeds)[:, None], index[:, None], position_ids[:, None])

    def _run(self, inputs_embeds: torch.Tensor, index: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        check_length(position_ids, self.config.sentence_decoder_config, "sentence_decoder_config")
        stream = Stream(self.sentence[:, None].expand_as(index), index, position_ids, torch.zeros_like(index))
        return self.decoder.read_on(inputs_embeds, stream, self.cache, self.attended)[:, -1]


def write_greedily(
    decoder: SentenceDecoder, latents: torch.Tensor, embed_tokens: Callable, lm_head: Callable, closes: Callable
) -> list[torch.Tensor]:
    """Writes one sentence from each of the latents `(S, num_latents, latent_size)`, without context.

    Args:
        embed_tokens, lm_head: Ids to embeddings, states to logits.
        closes: Whether token ids `(S,)` close a sentence of so many tokens `(S,)` before.

    Returns:
        S tensors of token ids, each up to and with the token that closes it.
    """
    rows, written = SideBySide(decoder, latents), []
    states = rows.begin()
    length = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
    is_open = torch.ones_like(length, dtype=torch.bool)
    while True:
        written.append(lm_head(states).argmax(-1))
        length, is_open = length + is_open, is_open & ~closes(written[-1], length)
        if not is_open.any():
            break
        states = rows.extend(embed_tokens(written[-1]), is_open)
    return [row[:size] for row, size in zip(torch.stack(written, 1), length.tolist(), strict=True)]


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
    states, *layers = decoder(of_rows, token_embeds, positions, window, output_hidden_states=output_hidden_states)
    row, slot = layout.token_row, positions.token_slot.flatten()[layout.token_index]
    return states[row, slot - 1], states[row, slot], each(lambda layer: layer[row, slot - 1], layers)


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
