"""The sentence VAE: an encoder that turns a sentence into latents, a decoder that writes the sentence from them.

SentenceVAE, arXiv 2408.00655, section 3.1. Both are transformers built by `AutoModel` and driven by embeddings.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, DynamicCache, EncoderDecoderCache, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_sentence_vae import SentenceVaeConfig
from .initialization_sllm import FromBackboneMixin
from .losses_sllm import chunked_token_loss, kl_divergence, stop_loss, token_loss
from .packing_sllm import (
    DecoderPositions,
    HiddenStates,
    Stream,
    cross_attention_kwargs,
    decoder_positions,
    gather_stream,
    mask_attention,
    run_stream,
    stream_mask,
)
from .segmentation_sllm import SentenceLayout, SentenceSegmenter
from .validation_sllm import check_inputs, check_mask, check_skip_logits, warn_of_attentions


@dataclass
class SentenceVaeOutput(ModelOutput):
    """
    Attributes:
        loss: Mean over the tokens of the cross-entropy; in training the weighted sum of `losses`.
        logits: `(batch, length, vocab)`; `logits[:, t]` is the distribution of token t itself, given its sentence's
            latents and the sentence's tokens before t. Zero where the input is padding.
        latents: `(sentences, num_latents, latent_size)`, the sentences of the batch row after row.
        stop_logits: `(batch, length)`, with `stop_head`: whether token t closes its sentence.
        losses: The named terms of the loss, unweighted.
        hidden_states: With `output_hidden_states`, `(batch, length, width)` of the decoder's input and of each of its
            layers, where `logits[:, t]` comes from.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    stop_logits: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class SentenceEncoder(nn.Module):
    """Turns each sentence into `num_latents` latents; its transformer sees the sentence in both directions.

    Args:
        token_width: Width of the token embeddings it gets; by default it owns them.
    """

    def __init__(self, config: SentenceVaeConfig, token_width: int | None = None):
        super().__init__()
        self.config = config
        self.packed: bool | None = None
        self.model = AutoModel.from_config(config.sentence_encoder_config)
        self._no_split_modules = self.model._no_split_modules  # a model collects its children's
        width = self.model.get_input_embeddings().embedding_dim
        if token_width is not None:
            self.model.set_input_embeddings(None)
        self.embed_projection = project(token_width, width)
        if config.pooling == "sum":
            self.latent_norm = nn.LayerNorm(width)
        else:
            self.latent_queries = nn.Embedding(config.num_latents, width)
        # With a KL term a latent is a Gaussian: mean and log-variance.
        self.latent_head = nn.Linear(width, config.latent_size * (2 if config.kl_weight > 0 else 1))

    def forward(self, token_embeds: torch.Tensor, sentence: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            token_embeds: `(N, token_width)`.
            sentence: `(N,)` the sentence of each token, `0..S-1` in order.

        Returns:
            Mean of the latents, `(S, num_latents, latent_size)`, and their log-variance if the config has a KL term.
        """
        token_embeds = self.embed_projection(token_embeds)
        lengths = torch.bincount(sentence)
        num_queries = 0 if self.config.pooling == "sum" else self.config.num_latents
        token_slot = torch.arange(len(sentence), device=sentence.device) + num_queries * (sentence + 1)
        sizes = lengths + num_queries
        stream_sentence = torch.repeat_interleave(sizes)
        first = sizes.cumsum(0) - sizes
        index = torch.arange(len(stream_sentence), device=sentence.device)
        position_ids = index - first[stream_sentence]
        stream = Stream(torch.zeros_like(index), stream_sentence, index, position_ids, torch.zeros_like(index))

        inputs_embeds = token_embeds
        if num_queries:
            query_slot = first[:, None] + torch.arange(num_queries, device=sentence.device)
            inputs_embeds = token_embeds.new_zeros(len(index), token_embeds.shape[-1])
            inputs_embeds = inputs_embeds.index_copy(0, token_slot, token_embeds)
            queries = all_rows(self.latent_queries, sentence.device).to(token_embeds.dtype).repeat(len(lengths), 1)
            inputs_embeds = inputs_embeds.index_copy(0, query_slot.flatten(), queries)
        states = run_stream(self.model, inputs_embeds, stream, causal=False, packed=self.packed)

        if num_queries:
            states = states[query_slot]  # (S, num_latents, width)
        else:
            total = states.new_zeros(len(lengths), states.shape[-1]).index_add(0, sentence, states)
            states = self.latent_norm(total)[:, None]
        mean, *log_variance = self.latent_head(states).split(self.config.latent_size, dim=-1)
        return mean, (log_variance[0] if log_variance else None)


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


def all_rows(table: nn.Embedding, device: torch.device) -> torch.Tensor:
    """The vectors of a table, by its forward pass, which is where accelerate brings in weights that lie elsewhere."""
    return table(torch.arange(table.num_embeddings, device=device))


def adjust_logits(logits: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """What some language models do to the LM head's output: Granite and Cohere scale it, Gemma 2 caps it."""
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    if scale != 1.0:  # of a whole vocabulary, the product would be felt
        logits = logits * scale
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def project(inputs: int | None, outputs: int) -> nn.Module:
    """A linear map where the widths differ."""
    return nn.Identity() if inputs in (None, outputs) else nn.Linear(inputs, outputs, bias=False)


def sample_latents(
    config: SentenceVaeConfig, mean: torch.Tensor, log_variance: torch.Tensor | None, training: bool
) -> torch.Tensor:
    """The latents themselves in evaluation; in training drawn from their Gaussian, and with noise added."""
    latents = mean
    if training and log_variance is not None:
        latents = latents + torch.randn_like(latents) * torch.exp(0.5 * log_variance)
    if training and config.latent_noise > 0:
        latents = latents + config.latent_noise * torch.randn_like(latents)
    return latents


def drop_inputs(
    config: SentenceVaeConfig, token_embeds: torch.Tensor, latents: torch.Tensor, training: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hides a share of the decoder's input tokens, and of the latents, in training: whole vectors become zero."""
    if training and config.token_dropout > 0:
        token_embeds = token_embeds * (torch.rand_like(token_embeds[:, :1]) >= config.token_dropout)
    if training and config.latent_dropout > 0:
        latents = latents * (torch.rand_like(latents[:, :1, :1]) >= config.latent_dropout)
    return token_embeds, latents


class SentenceVaePreTrainedModel(PreTrainedModel):
    """What the models with a sentence encoder and decoder share: what they support, and how they begin."""

    config: SentenceVaeConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # `num_items_in_batch` from Trainer
    kl_scale = 1.0  # what the KL term's weight is multiplied by: a schedule raises it from 0
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def is_custom_code(cls) -> bool:
        # In a model from elsewhere, whose `_init_weights` might write over loaded weights, transformers passes over
        # each module without parameters of its own: `SentenceEncoder`, `SllmModel`, GPT-2's attention. Ours writes by
        # `transformers.initialization`, as transformers' own models do.
        return False

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        # Latents have unit variance; what enters a transformer has the scale of its token embeddings.
        if isinstance(module, SentenceEncoder):
            unit_linear(module.latent_head)
        elif isinstance(module, SentenceDecoder):
            unit_linear(module.latent_prefix, getattr(self.config.token_config, "initializer_range", 0.02))

    def wanted_layers(self, output_hidden_states: bool | list[int] | None) -> HiddenStates:
        """Collects the decoder's layers if the argument, or else the config, says so."""
        return HiddenStates(self.config.output_hidden_states if output_hidden_states is None else output_hidden_states)

    def sum_token_loss(
        self, states: torch.Tensor, targets: torch.Tensor, logits: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Cross-entropy in nats, summed over the targets `(N,)`: of the logits `(N, vocab)` if they exist, else in
        chunks from the states `(N, width)`. In training it is focal, if the config says so."""
        gamma = self.config.focal_gamma if self.training else 0.0
        if logits is None:
            adjust = functools.partial(adjust_logits, config=self.config.token_config)
            return chunked_token_loss(states, targets, self.lm_head, adjust, gamma)
        return token_loss(logits, targets, gamma)

    def weighted_sum(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss: its named terms, each with the config's weight for it if there is one."""
        weights = {"kl": self.config.kl_weight * self.kl_scale, "stop": self.config.stop_weight}
        if "next_sentence" in losses:
            weights["reconstruction"] = self.config.reconstruction_weight
            weights["bag_of_words"] = self.config.bag_of_words_weight
            weights["next_latent"] = self.config.next_latent_weight
        return torch.stack([weights.get(name, 1.0) * term for name, term in losses.items()]).sum()

    def tie_head(self, table: nn.Module, names: str) -> None:
        """Declares the LM head tied to the embeddings, whatever the backbone calls them."""
        name = next(name for name, module in self.named_modules() if module is table)
        self._tied_weights_keys = {names: f"{name}.weight"}


def unit_linear(linear: nn.Linear, scale: float = 1.0) -> None:
    """Initialises a linear map so that inputs of unit variance give outputs of this standard deviation."""
    init.normal_(linear.weight, mean=0.0, std=scale * linear.in_features**-0.5)
    init.zeros_(linear.bias)


class SentenceVaeModel(FromBackboneMixin, SentenceVaePreTrainedModel):
    """Sentences to latents and back, by themselves: stage 1 of the training (paper, section 3.1)."""

    _auto_class = "AutoModel"  # saving a model saves its code too

    def __init__(self, config: SentenceVaeConfig):
        super().__init__(config)
        self.sentence_encoder = SentenceEncoder(config)
        width = self.get_input_embeddings().embedding_dim
        self.sentence_decoder = SentenceDecoder(config, width)
        self.lm_head = nn.Linear(width, config.vocab_size, bias=config.lm_head_bias)
        self.segmenter = SentenceSegmenter(config)
        self.tie_head(self.get_input_embeddings(), "lm_head.weight")
        self.post_init()

    def get_input_embeddings(self):
        return self.sentence_encoder.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.sentence_encoder.model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, new_embeddings):
        self.lm_head = new_embeddings

    def encode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        sentence_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The latents `(sentences, num_latents, latent_size)` of the sentences of a `(batch, length)` input."""
        shape = check_inputs(input_ids, None, sentence_ids, self.config.vocab_size)
        mask = check_mask(attention_mask, shape, input_ids.device)
        layout = self.segmenter.layout(input_ids, mask, sentence_ids=sentence_ids)
        embeds = self.get_input_embeddings()(input_ids.flatten()[layout.token_index])
        return self.sentence_encoder(embeds, layout.token_sentence)[0]

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> list[torch.Tensor]:
        """Greedily writes one sentence from each of the `(sentences, num_latents, latent_size)` latents.

        Returns:
            One tensor of token ids for each sentence.
        """
        return self.sentence_decoder.write(
            latents,
            self.get_input_embeddings(),
            self.compute_logits,
            self.segmenter.closes,
            self.config.max_sentence_length,
        )

    def compute_logits(self, states: torch.Tensor) -> torch.Tensor:
        """`(…, width)` states to `(…, vocab)` logits."""
        return adjust_logits(self.lm_head(states), self.config.token_config)

    def reconstruct(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        sentence_ids: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Decodes what it encoded: one tensor of token ids for each sentence of the input."""
        return self.decode(self.encode(input_ids, attention_mask, sentence_ids))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        sentence_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        return_dict: bool | None = None,
        skip_logits: bool = False,
    ) -> SentenceVaeOutput | tuple:
        """
        Args:
            input_ids: `(batch, length)`.
            attention_mask: `(batch, length)`, 0 for padding.
            sentence_ids: `(batch, length)` explicit sentences, see `SentenceSegmenter.layout`.
            inputs_embeds: `(batch, length, width)` instead of, or beside, the ids.
            labels: `(batch, length)`, the tokens to reconstruct, not shifted; -100 is left out.
            num_items_in_batch: What the loss is divided by, by default the number of labels.
            output_attentions: None are returned; if true a warning says so.
            output_hidden_states: Whether to return the decoder's hidden states, or of which layers.
            skip_logits: Return no logits: the loss is computed in chunks, and all of them never exist at once.
        """
        warn_of_attentions(output_attentions)
        check_skip_logits(skip_logits, labels)
        shape = check_inputs(input_ids, inputs_embeds, sentence_ids, self.config.vocab_size)
        device = (input_ids if input_ids is not None else inputs_embeds).device
        mask = check_mask(attention_mask, shape, device)
        overlooked = self.config.boundary_dropout if self.training else 0.0
        layout = self.segmenter.layout(input_ids, mask, None, sentence_ids, overlooked)
        table = inputs_embeds if inputs_embeds is not None else self.get_input_embeddings()(input_ids)
        embeds = table.flatten(0, 1)[layout.token_index]  # (N, width)
        mean, log_variance = self.sentence_encoder(embeds, layout.token_sentence)
        latents = sample_latents(self.config, mean, log_variance, self.training)

        layers = self.wanted_layers(output_hidden_states)
        states, positions = reconstruction_states(self.sentence_decoder, layout, embeds, latents, hidden_states=layers)
        before = positions.token_slot - 1  # each token is predicted from the position before it
        token_logits = None if skip_logits else self.compute_logits(states[before])  # (N, vocab)
        token_stops = None
        if self.config.stop_head:
            token_stops = self.sentence_decoder.stop_head(states[positions.token_slot]).squeeze(-1)

        loss, losses = None, None
        if labels is not None:
            targets = labels.flatten()[layout.token_index]
            items = (targets != -100).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            losses = {"reconstruction": self.sum_token_loss(states[before], targets, token_logits) / items}
            if self.training and log_variance is not None:
                losses["kl"] = kl_divergence(self.config, mean, log_variance) / items
            if self.training and self.config.stop_head:
                losses["stop"] = stop_loss(token_stops, layout.token_closes) / items
            loss = self.weighted_sum(losses)
        output = SentenceVaeOutput(
            loss=loss,
            logits=None if skip_logits else scatter_tokens(token_logits, layout, shape),
            latents=latents,
            stop_logits=None if token_stops is None else scatter_tokens(token_stops, layout, shape),
            losses=losses,
            hidden_states=layers.gather(states, lambda layer: scatter_tokens(layer[before], layout, shape)),
        )
        return output if return_dict is not False else output.to_tuple()


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


__all__ = ["SentenceDecoder", "SentenceEncoder", "SentenceVaeModel", "SentenceVaeOutput", "SentenceVaePreTrainedModel"]
