"""The sentence-level language model: encoder, backbone, decoder (SentenceVAE, arXiv 2408.00655, section 3.2).

tokens of sentence j ──► SentenceEncoder ──► latents z_j
start, z_1 … z_{j-1} ──► backbone ──► predicted latents of sentence j
predicted latents, tokens of j ──► SentenceDecoder ──► states, one for each token
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .backbone_loading import FromBackboneMixin
from .backbone_rows import RowCaches
from .configuration_sllm import SllmConfig
from .generation_sllm import SllmGenerationMixin
from .latent_denoiser import LatentDenoiser, init_denoiser
from .latent_memory import LatentMemory, MemoryLayer, init_memory_layer
from .latent_objectives import (
    NextLatentHead,
    contrastive_loss,
    kl_divergence,
    next_latent_loss,
    sample_latents,
    scored_tokens,
)
from .latent_predictor import LATENT_PREDICTORS, LatentSampling, sentence_noise
from .modeling_sentence_vae import SentenceVaePreTrainedModel, unit_linear
from .sentence_decoder import SentenceDecoder, closed_reconstruction
from .sentence_encoder import SentenceEncoder, all_rows, encode_in_parts
from .sentence_segmentation import SentenceLayout, SentenceSegmenter
from .stream_attention import each
from .stream_cache import SllmCache
from .stream_layout import DecoderPositions, Stream, lay_out, pad_rows, said_so_far, tail_of_prefill, take
from .stream_texts import find_texts
from .token_losses import LMHead, aligned_targets, stop_loss
from .token_shortlist import bag_of_words_loss
from .validation_backbone import check_window
from .validation_inputs import (
    check_cache,
    check_inputs,
    check_labels,
    check_latent_options,
    check_length,
    check_mask,
    check_positions,
    check_predict_ahead,
    check_unknown,
    warn_of_attentions,
)

# What is in a memory, `(batch, entries, num_latents, num_layers, 2 * width)`, and the sentence of each entry, `(batch,
# entries)`: 0 for the start, j for the j-th sentence, -1 for none.
Written = tuple[torch.Tensor, torch.Tensor]


@dataclass
class SllmModelOutput(BaseModelOutputWithPast):
    """
    Attributes:
        last_hidden_state: `(batch, length, width)`; from the state at t the LM head predicts token t + 1.
            Padding on the right repeats the last state, padding on the left has that which predicts the first token.
            With `states_to_keep`, of so many last positions.
        hidden_states: With `output_hidden_states`, such states of the decoder's input and of each of its layers; the
            last of them is `last_hidden_state`.
        token_states: `(batch, length, width)`, with a stop head: the decoder's states at the tokens themselves.
        latents: `(C, num_latents, latent_size)` of the C sentences closed, row after row; this and what follows only
            of texts from their beginning.
        latent_statistics: Mean and log-variance of these, if the config has a KL term.
        layout: The sentences. Of several texts in one row, each is a row of its own here.
        token_embeds: `(N, width)` of the tokens that the decoder reads.
        next_latents: The backbone's states `(C, width)` from which those sentences are predicted, and what it reads
            for them, `(C, width)`; with a `next_latent_weight` or a `contrastive_weight`.
        latent_prediction: `(C,)` in training, what predicting the latents of each sentence cost; with a
            `latent_predictor` that is no map.
    """

    token_states: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    latent_statistics: tuple[torch.Tensor, torch.Tensor] | None = None
    layout: SentenceLayout | None = None
    token_embeds: torch.Tensor | None = None
    next_latents: tuple[torch.Tensor, torch.Tensor] | None = None
    latent_prediction: torch.Tensor | None = None


@dataclass
class SllmOutput(CausalLMOutputWithPast):
    """
    Attributes:
        loss: In evaluation the mean cross-entropy of the next token; in training the weighted sum of `losses`. With a
            `latent_predictor` that samples, a text has no exact likelihood: the loss in evaluation is that of the
            latents sampled, whose mean over samples is not below the text's own.
        logits: `(batch, length, vocab)`; `logits[:, t]` is the distribution of token t + 1 given tokens 0 to t, and
            the latents sampled if there are any.
        past_key_values: The cache.
        hidden_states: As in `SllmModelOutput`.
        losses: The named terms of the loss, unweighted.
        stop_logits: `(batch, length)`, with `stop_head`: whether token t closes its sentence.
    """

    losses: dict[str, torch.Tensor] | None = None
    stop_logits: torch.Tensor | None = None


class SllmPreTrainedModel(SentenceVaePreTrainedModel):
    """What the models with a backbone share."""

    config: SllmConfig

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if getattr(self, "shortlist_head", None) is module:  # what comes first is a good guess at what comes
            init.eye_(module.weight)
        if isinstance(module, MemoryLayer):
            init_memory_layer(module)
        if isinstance(module, LatentDenoiser):
            init_denoiser(module)
        if isinstance(module, NextLatentHead):
            init.zeros_(module[-1].weight)
        if isinstance(module, SllmModel):
            if self.config.has_linear_predictor:
                unit_linear(module.latent_output)
            if self.config.has_linear_predictor and self.config.decoder_context_length > 0:
                # The last position of a prefix begins as the token before, from which a language model would go on.
                begins = torch.ones_like(module.latent_output.bias)
                begins[-self.config.latent_size :] = 0
                init.copy_(module.latent_output.weight, module.latent_output.weight * begins[:, None])
            unit_linear(module.latent_input, getattr(self.config.text_config, "initializer_range", 0.02))
            init.normal_(module.start_latents.weight, mean=0.0, std=1.0)


class SllmModel(SllmPreTrainedModel):
    """The model without its LM head. The backbone is `language_model`; its token embeddings serve all three parts."""

    _auto_class = "AutoModel"  # saving a model saves its code too

    def __init__(self, config: SllmConfig):
        super().__init__(config)
        self.language_model = AutoModel.from_config(config.text_config)
        width = self.get_input_embeddings().embedding_dim
        self.sentence_encoder = SentenceEncoder(config, width)
        self.sentence_decoder = SentenceDecoder(config, width)
        size = config.num_latents * config.latent_size
        self.start_latents = nn.Embedding(1, size)
        self.latent_input = nn.Linear(size, width)
        if config.has_linear_predictor:
            self.latent_output = nn.Linear(width, size)
        else:
            self.latent_predictor = LATENT_PREDICTORS[config.latent_predictor["type"]](config, width)
        self.memory = None if config.memory is None else LatentMemory(config, width)
        self.segmenter = SentenceSegmenter(config)
        self.post_init()

    def encode_sentences(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        sentence_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The latents of all sentences, the open ones too.

        Returns:
            `(batch, sentences, num_latents, latent_size)`, zero where a row has fewer sentences, and the mask
            `(batch, sentences)` that is true where it has one.
        """
        layout, latents = self.encode_all(input_ids, attention_mask, sentence_ids)
        return pad_rows(latents, layout.sentence_row, len(input_ids))

    def predict_next_latents(
        self,
        latents: torch.Tensor,
        sentence_mask: torch.Tensor | None = None,
        cache: SllmCache | None = None,
        begins: bool = True,
    ) -> torch.Tensor:
        """The backbone's prediction of each sentence's latents from those before it.

        Args:
            latents: `(batch, sentences, num_latents, latent_size)`.
            sentence_mask: `(batch, sentences)`, true where a row has a sentence; rows are padded on the right.
            cache: Holds the sentences before; it is updated.
            begins: Whether the texts begin here: then the start latents come first.

        Returns:
            `(batch, sentences + begins, num_latents, latent_size)`: position j is the prediction of sentence j if the
            texts begin here, else of the sentence after the j-th given.
        """
        if sentence_mask is None:
            sentence_mask = torch.ones(latents.shape[:2], dtype=torch.bool, device=latents.device)
        _, position_ids, _, states = self._read_latents(latents, sentence_mask, cache, begins)
        return self.latents_from(states, position_ids, cache)

    def latents_from(
        self, states: torch.Tensor, position_ids: torch.Tensor, cache: SllmCache | None = None
    ) -> torch.Tensor:
        """The latents `(batch, J, num_latents, latent_size)` that the backbone's states `(batch, J, width)` predict.

        Args:
            position_ids: `(batch, J)` of these states, see `read_sentences`. A predictor that samples has its own
                noise for each sentence.
            cache: Holds the seeds of that noise, and how it is sampled. Without one all seeds are 0.
        """
        shape = (self.config.num_latents, self.config.latent_size)
        if self.config.has_linear_predictor:
            return self.latent_output(states.to(self.latent_output.weight.dtype)).unflatten(-1, shape)
        seeds = [0] * len(states) if cache is None else cache.seeds_of_rows(len(states))
        sampling = None if cache is None else cache.latent_sampling
        if sampling is None:
            sampling = LatentSampling.of(self.config.latent_predictor)
        noise = sentence_noise(seeds, position_ids, shape)
        sampled = self.latent_predictor.sample(states.flatten(0, 1), noise.flatten(0, 1), sampling)
        return sampled.to(states.dtype).view_as(noise)

    def read_sentences(
        self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor, cache: SllmCache | None = None
    ) -> torch.Tensor:
        """The backbone's states `(batch, sentences, width)`.

        Args:
            inputs_embeds: `(batch, sentences, width)`, what `latent_input` makes of each sentence's latents.
            position_ids: `(batch, sentences)`, 0 for the start, j for sentence j, -1 where a row has none.
            cache: Holds the sentences before; it is updated.
        """
        mask = position_ids >= 0 if cache is None else cache.append_sentences(position_ids)
        check_length(position_ids, self.config.text_config, "text_config")
        inputs_embeds = inputs_embeds.to(self.get_input_embeddings().weight.dtype)
        if cache is not None:
            if isinstance(cache.language_model, RowCaches):
                return cache.language_model.read(self.language_model, inputs_embeds, position_ids)
            check_window(cache.entry_sentence, self.config.text_config)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=mask.long(),
            position_ids=position_ids.clamp(min=0),
            past_key_values=None if cache is None else cache.language_model,
            use_cache=cache is not None,
        ).last_hidden_state

    def _read_latents(
        self, latents: torch.Tensor, sentence_mask: torch.Tensor, cache: SllmCache | None, begins: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the backbone makes of latents, see `predict_next_latents`.

        Returns:
            The latents `(batch, sentences + begins, num_latents, latent_size)`, after the start's where texts begin.
            Their `position_ids`, see `read_sentences`. What the backbone reads of them, and its states; both
            `(batch, sentences + begins, width)`.
        """
        if begins:
            start = all_rows(self.start_latents, latents.device).to(latents).view(1, 1, *latents.shape[2:])
            latents = torch.cat([start.expand(len(latents), -1, -1, -1), latents], 1)
            sentence_mask = F.pad(sentence_mask, (1, 0), value=True)
        position_ids = sentence_mask.long().cumsum(1) - 1
        if cache is not None and not begins:
            position_ids = position_ids + cache.num_sentences[:, None] + 1
        position_ids = position_ids.masked_fill(~sentence_mask, -1)
        embeds = self.latent_input(latents.flatten(2).to(self.latent_input.weight.dtype))
        states = self.read_sentences(embeds, position_ids, cache)
        if cache is not None:
            cache.keep_sentence_state(states, position_ids)
        return latents, position_ids, embeds, states

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        sentence_ids: torch.Tensor | None = None,
        past_key_values: SllmCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        return_dict: bool | None = None,
        states_to_keep: int = 0,
        **kwargs: torch.Tensor,
    ) -> SllmModelOutput | tuple:
        """
        Args:
            input_ids: `(batch, length)`; those after the ones in the cache.
            attention_mask: `(batch, length)`, 0 for padding; what the cache holds may come before.
            position_ids: `(batch, length)`. They count up from 0. Without a cache another text begins in a row where
                they begin again at 0, or where `seq_idx`, `(batch, length)`, or `cu_seq_lens_q`, the bounds of the
                texts of a single row, among the `kwargs` say so. What comes back is laid out as what came in.
            sentence_ids: `(batch, length)` explicit sentences, see `SentenceSegmenter.layout`; not with a cache.
            past_key_values: The cache.
            inputs_embeds: `(batch, length, width)`, instead of the ids if there are `sentence_ids`, or beside them:
                then the ids only show where sentences end. Not with a cache.
            use_cache: Whether to make a cache; by default none is made.
            output_attentions: None are returned; if true a warning says so.
            output_hidden_states: Whether to return the decoder's hidden states, or of which layers.
            states_to_keep: Return the states of so many last positions only; 0 is all. In a text from its beginning
                the decoder then reads no more than these depend on, however long the text is.
        """
        warn_of_attentions(output_attentions)
        texts, given = None, input_ids if input_ids is not None else inputs_embeds
        if past_key_values is not None or use_cache:
            check_unknown(kwargs)
            check_cache(past_key_values, sentence_ids, inputs_embeds)
            past_key_values = SllmCache(self.config) if past_key_values is None else past_key_values
        else:
            texts = find_texts(given, attention_mask, position_ids, kwargs)
        if texts is not None:
            input_ids, inputs_embeds, sentence_ids = texts.unpack(
                input_ids=input_ids, inputs_embeds=inputs_embeds, sentence_ids=sentence_ids
            )
            attention_mask = texts.mask
        cache = past_key_values
        goes_on = cache is not None and not cache.is_empty
        shape = check_inputs(input_ids, inputs_embeds, sentence_ids, None if goes_on else self.config.vocab_size)
        if goes_on and attention_mask is not None:
            attention_mask = cache.newest(attention_mask, shape[1])
        mask = check_mask(attention_mask, shape, given.device)
        if cache is not None:
            check_positions(position_ids, mask, begins=not goes_on, cached=True)
        kept = shape[1] if texts is not None else min(states_to_keep, shape[1]) or shape[1]
        layers = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if goes_on and cache.must_replay:
            input_ids, mask = torch.cat([cache.token_ids, input_ids], 1), torch.cat([cache.token_mask, mask], 1)
            cache.reset()
            goes_on = False

        if not goes_on:
            output = self._read_text(input_ids, inputs_embeds, mask, sentence_ids, cache, kept, layers)
        elif not mask.any():
            output = self._read_padding(input_ids, mask, cache, kept)
        elif layers is False and self._only_continues(input_ids, mask, cache):
            states = self.continue_sentences(input_ids, mask, cache)
            output = SllmModelOutput(last_hidden_state=states, past_key_values=cache, token_states=states)
        else:
            output = self._read_on(input_ids, mask, cache, kept, layers)
        if texts is not None:
            pack = partial(texts.pack, kept=states_to_keep)
            output.last_hidden_state, output.token_states = each(pack, (output.last_hidden_state, output.token_states))
            output.hidden_states = each(pack, output.hidden_states or ()) or None
        return output if return_dict is not False else output.to_tuple()

    def _read_text(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        mask: torch.Tensor,
        sentence_ids: torch.Tensor | None,
        cache: SllmCache | None,
        kept: int,
        layers: bool | list[int],
    ) -> SllmModelOutput:
        """Texts from their beginning; the states of the last `kept` tokens."""
        config = self.config
        overlooked = config.boundary_dropout if self.training and cache is None else 0.0
        layout = self.segmenter.layout(input_ids, mask, sentence_ids, overlooked)
        closes = layout.scatter(layout.token_closes)  # (batch, length)

        embed = partial(self.embeds_of, input_ids=input_ids, inputs_embeds=inputs_embeds)
        in_parts = cache is not None and not torch.is_grad_enabled()
        latents, statistics = self._encode(embed, layout, in_parts)  # (C, num_latents, latent_size)
        predicted, written, next_latents, latent_prediction = self._predict(latents, layout, cache)

        positions = lay_out(mask, closes, config.prefix_length, config.decoder_context_length == 0)
        token_index, first_needed = layout.token_index, None
        if kept < mask.shape[1]:
            depth = self.sentence_decoder.model.config.num_hidden_layers
            positions, used, first_needed = tail_of_prefill(positions, kept, depth, config)
            token_index = token_index[used]
        embeds = embed(token_index)
        output = self._decode(predicted, written, embeds, positions, mask, cache, kept, layers)
        if cache is not None:
            cache.append_tokens(input_ids, mask, closes)
            if first_needed is not None:
                cache.drop_slots_before(first_needed)
        output.latents, output.next_latents, output.latent_prediction = latents, next_latents, latent_prediction
        output.latent_statistics, output.layout, output.token_embeds = statistics, layout, embeds
        return output

    def _read_on(
        self, input_ids: torch.Tensor, mask: torch.Tensor, cache: SllmCache, kept: int, layers: bool | list[int]
    ) -> SllmModelOutput:
        """More tokens, after those in the cache; the states of the last `kept` ones."""
        # From where the open sentences begin: one that closes now is encoded as a whole.
        open_ids, open_mask = cache.open_tokens()
        whole_ids = torch.cat([open_ids, input_ids], 1)
        layout = self.segmenter.layout(whole_ids, torch.cat([open_mask, mask], 1))
        closes = layout.scatter(layout.token_closes)[:, open_mask.shape[1] :]  # (batch, length)

        if layout.sentence_closed.any():
            latents, _ = self._encode(partial(self.embeds_of, input_ids=whole_ids), layout)
            predicted, written, *_ = self._predict(latents, layout, cache)
        else:
            size = (self.config.num_latents, self.config.latent_size)
            predicted, written = torch.zeros(len(mask), 0, *size, device=mask.device), cache.written

        restart = self.config.decoder_context_length == 0
        positions = lay_out(mask, closes, self.config.prefix_length, restart, past=cache)
        embeds = self.get_input_embeddings()(input_ids[mask])
        output = self._decode(predicted, written, embeds, positions, mask, cache, kept, layers)
        cache.append_tokens(input_ids, mask, closes)
        return output

    def _read_padding(
        self, input_ids: torch.Tensor, mask: torch.Tensor, cache: SllmCache, kept: int
    ) -> SllmModelOutput:
        """Nothing but padding: what was said last still stands."""
        cache.append_tokens(input_ids, mask, mask)
        states = cache.last_state[:, None].expand(-1, kept, -1)
        return SllmModelOutput(last_hidden_state=states, past_key_values=cache, token_states=states)

    def _only_continues(self, input_ids: torch.Tensor, mask: torch.Tensor, cache: SllmCache) -> bool:
        """Whether this is one token that closes no sentence: the step that nearly all of generation consists of."""
        if self.training or input_ids.shape[1] > 1:
            return False
        return not (self.segmenter.closes(input_ids[:, 0], cache.open_length) & mask[:, 0]).any()

    def continue_sentences(self, input_ids: torch.Tensor, mask: torch.Tensor, cache: SllmCache) -> torch.Tensor:
        """As the forward pass, `(batch, 1, width)`, for one token that closes no sentence, where the mask is true."""
        position_ids = cache.num_tokens if self.config.decoder_context_length else cache.open_length
        stream = Stream(
            sentence=cache.num_sentences[:, None],
            index=cache.num_positions[:, None].masked_fill(~mask, -1),
            position_ids=position_ids[:, None] + 1,
            prefix=torch.zeros_like(input_ids),
        )
        check_length(stream.position_ids, self.config.sentence_decoder_config, "sentence_decoder_config")
        embeds = self.get_input_embeddings()(input_ids)
        projected = self.sentence_decoder.embed_projection(embeds)
        states = self.sentence_decoder.read_on(projected, stream, cache.decoder, cache.open_latents)
        if self.memory is not None:
            cache.said = self.said_before(cache) + embeds[:, 0].float() * mask
            states = self.memory(states, cache.said[:, None], stream.sentence, *cache.written)
        states = torch.where(mask[..., None], states, cache.last_state[:, None])
        cache.append_open(input_ids, mask)
        cache.last_state = states[:, -1]
        return states

    def _encode(
        self, embed: Callable, layout: SentenceLayout, in_parts: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
        """The latents of the C closed sentences, `(C, num_latents, latent_size)`, and their mean and log-variance, if
        the config has a KL term."""
        closed = layout.sentence_closed[layout.token_sentence]  # (N,)
        index = layout.token_index[closed]
        sentence = (layout.sentence_closed.cumsum(0) - 1)[layout.token_sentence[closed]]
        if len(index) == 0:
            # Where weights are sharded, every process has to call every part: here on a sentence that nobody reads.
            index = torch.zeros(1, dtype=torch.long, device=index.device)
            found = self.sentence_encoder(embed(index), index)
            mean, log_variance = (None if part is None else part[:0] for part in found)
        elif in_parts:
            mean, log_variance = encode_in_parts(self.sentence_encoder, embed, index, sentence)
        else:
            mean, log_variance = self.sentence_encoder(embed(index), sentence)
        latents = sample_latents(self.config, mean, log_variance, self.training)
        return latents, None if log_variance is None else (mean, log_variance)

    def _predict(
        self, latents: torch.Tensor, layout: SentenceLayout, cache: SllmCache | None
    ) -> tuple[torch.Tensor, Written | None, tuple[torch.Tensor, torch.Tensor] | None, torch.Tensor | None]:
        """What becomes of the latents `(C, num_latents, latent_size)` of the closed sentences.

        Returns:
            The latents `(batch, J, num_latents, latent_size)` that the backbone predicts of the sentences that begin
            in each row: where texts begin the first one and those after a closed sentence, else the latter. What is in
            the memory, see `Written`. And the `next_latents` and `latent_prediction` of `SllmModelOutput`.
        """
        begins = cache is None or cache.is_empty
        padded, sentence_mask = pad_rows(latents, layout.sentence_row[layout.sentence_closed], len(layout.mask))
        learns = self.training and cache is None and not self.config.has_linear_predictor
        read = self._with_own_predictions(padded, sentence_mask) if learns else padded
        read, position_ids, embeds, states = self._read_latents(read, sentence_mask, cache, begins)
        if begins:
            padded = torch.cat([read[:, :1], padded], 1)  # after the start's
        written = None
        if self.memory is not None:
            written = self.memory.write(padded), position_ids
            if cache is not None:
                cache.append(memory=written[0])
                written = cache.written
        next_latents = None
        if begins and max(self.config.next_latent_weight, self.config.contrastive_weight) > 0:
            next_latents = (states[:, :-1][sentence_mask], embeds[:, 1:][sentence_mask])
        if learns:
            # The decoder learns from what was encoded, and the predictor to say it. Of a sentence that stays open it
            # reads what is most usual.
            cost = self.latent_predictor.loss(states[:, :-1][sentence_mask], latents)
            usual = self.latent_predictor.normaliser.center.to(padded).expand(len(padded), 1, -1, -1)
            is_closed = F.pad(sentence_mask, (0, 1))[..., None, None]
            return torch.where(is_closed, torch.cat([padded[:, 1:], usual], 1), usual), written, next_latents, cost
        return self.latents_from(states, position_ids, cache), written, next_latents, None

    @torch.no_grad()
    def _with_own_predictions(self, latents: torch.Tensor, sentence_mask: torch.Tensor) -> torch.Tensor:
        """Latents `(batch, sentences, num_latents, latent_size)`, a share of them replaced by what is predicted."""
        share = self.config.latent_predictor["own_inputs"]
        if share == 0:
            return latents
        states = self._read_latents(latents, sentence_mask, None, True)[-1][:, :-1].flatten(0, 1)
        noise = torch.randn_like(latents, dtype=torch.float32).flatten(0, 1)
        predicted = self.latent_predictor.sample(states, noise, LatentSampling.of(self.config.latent_predictor))
        is_own = torch.rand(sentence_mask.shape, device=latents.device) < share
        return torch.where(is_own[..., None, None], predicted.to(latents.dtype).view_as(latents), latents)

    def said_before(self, cache: SllmCache) -> torch.Tensor:
        """`(batch, width)` sum of the embeddings of the tokens of the open sentences."""
        if cache.said is None:  # tokens were taken back
            token_ids, mask = cache.open_tokens()
            cache.said = (self.get_input_embeddings()(token_ids).float() * mask[..., None]).sum(1)
        return cache.said

    def _remember(
        self,
        states: torch.Tensor,
        token_embeds: torch.Tensor,
        positions: DecoderPositions,
        output_slot: torch.Tensor,
        written: Written,
        cache: SllmCache | None,
    ) -> torch.Tensor:
        """The states `(batch, kept, width)` at these positions `(batch, kept)`, with what they read in the memory."""
        before = None if cache is None or cache.is_empty else self.said_before(cache)
        place = output_slot.clamp(min=0)
        tokens = F.pad(token_embeds, (0, 0, 0, 1))[positions.token]  # (batch, positions, width); at -1 zeros
        said = take(said_so_far(tokens, positions.stream, before), place)
        if before is not None:
            said = torch.where((output_slot < 0)[..., None], before[:, None], said)
        if cache is not None:
            cache.said = said[:, -1]
        return self.memory(states, said, positions.stream.sentence.gather(1, place), *written)

    def _decode(
        self,
        predicted: torch.Tensor,
        written: Written | None,
        token_embeds: torch.Tensor,
        positions: DecoderPositions,
        mask: torch.Tensor,
        cache: SllmCache | None,
        kept: int,
        layers: bool | list[int],
    ) -> SllmModelOutput:
        """The decoder's states at the last `kept` of the tokens that the mask shows."""
        check_length(positions.stream.position_ids, self.config.sentence_decoder_config, "sentence_decoder_config")
        window = self.config.decoder_context_length
        states, *hidden_states = self.sentence_decoder(predicted, token_embeds, positions, window, cache, layers)
        output_slot = positions.output_slot[:, -kept:]
        place = output_slot.clamp(min=0)
        last_hidden_state = take(states, place)  # (batch, kept, width)
        if self.memory is not None:
            last_hidden_state = self._remember(last_hidden_state, token_embeds, positions, output_slot, written, cache)
        if cache is not None:
            if not cache.is_empty:  # before a row's first new token stands what follows the last one it had
                last_hidden_state = torch.where(
                    (output_slot < 0)[..., None], cache.last_state[:, None], last_hidden_state
                )
            cache.last_state = last_hidden_state[:, -1]
        token_states = None
        if self.config.stop_head:
            token_states = take(states, positions.token_slot[:, -kept:].clamp(min=0)) * mask[:, -kept:, None]
        if hidden_states:
            *others, last = each(lambda layer: take(layer, place), hidden_states)
            hidden_states = (*others, None if last is None else last_hidden_state)
        return SllmModelOutput(
            last_hidden_state=last_hidden_state,
            past_key_values=cache,
            hidden_states=hidden_states or None,
            token_states=token_states,
        )


class SllmForCausalLM(FromBackboneMixin, SllmPreTrainedModel, SllmGenerationMixin):
    """The model with its LM head: a causal language model like any other, that thinks a sentence at a time."""

    _tp_plan = {"lm_head": "colwise_gather_output"}

    _auto_class = "AutoModelForCausalLM"

    def __init__(self, config: SllmConfig):
        super().__init__(config)
        self.model = SllmModel(config)
        width = self.get_input_embeddings().embedding_dim
        self.lm_head = LMHead(width, config.vocab_size, bias=config.lm_head_bias)
        if config.bag_of_words_weight > 0:
            self.shortlist_head = nn.Linear(width, width)
        if config.next_latent_weight > 0:
            self.next_latent_head = NextLatentHead(width)
        self.tie_head(self.get_input_embeddings(), "lm_head.weight")
        self.post_init()

    @wraps(SllmModel.encode_sentences)
    def encode_sentences(self, *args, **kwargs):
        return self.model.encode_sentences(*args, **kwargs)

    @torch.no_grad()
    def predict_ahead(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        count: int = 1,
        futures: int = 1,
        diversity: float = 0.0,
        latent_seed: int = 0,
        latent_steps: int | None = None,
        latent_guidance_scale: float | None = None,
        latent_noise_scale: float | None = None,
    ) -> torch.Tensor:
        """Latents `(batch * futures, count, num_latents, latent_size)` of the sentences to come, of which none is
        written: the backbone reads its own predictions (continuous inference, arXiv 2505.22202). `decode_latents`
        writes them.

        Args:
            input_ids: `(batch, length)`, whole sentences: tokens after the last one that is closed are left out.
            attention_mask: `(batch, length)`, 0 for padding.
            count: Sentences to predict.
            futures: Ways in which each text may go on, one after the other.
            diversity: How strongly the futures of a text push each other apart, with a predictor of type `flow`.
            latent_seed: Of a text's first future, where latents are sampled; the others have the next ones.
            latent_steps, latent_guidance_scale, latent_noise_scale: As in `generate`.

        Raises:
            ValueError: If a number cannot be, or the model's predictions are not what its backbone reads.
        """
        check_predict_ahead(self.config, count, futures, diversity)
        told = {"steps": latent_steps, "guidance_scale": latent_guidance_scale, "noise_scale": latent_noise_scale}
        check_latent_options(self.config, {f"latent_{name}": value for name, value in told.items()})
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        layout, latents = self.model.encode_all(input_ids, mask, None)
        closed = layout.sentence_closed
        latents, is_sentence = pad_rows(latents[closed], layout.sentence_row[closed], len(input_ids))
        latents, is_sentence = latents.repeat_interleave(futures, 0), is_sentence.repeat_interleave(futures, 0)
        cache, predicted = SllmCache(self.config), []
        cache.latent_sampling = LatentSampling.of(
            self.config.latent_predictor, futures=futures, diversity=diversity, **told
        )
        seeds = torch.arange(latent_seed, latent_seed + futures, device=input_ids.device)
        cache.latent_seeds = seeds.repeat(len(input_ids))
        cache.num_sentences = torch.zeros_like(cache.latent_seeds)
        for number in range(count):
            *_, states = self.model._read_latents(latents, is_sentence, cache, begins=number == 0)
            cache.num_sentences = cache.num_sentences + is_sentence.sum(1)
            latents = self.model.latents_from(cache.sentence_state[:, None], cache.num_sentences[:, None], cache)
            is_sentence = torch.ones_like(latents[:, :, 0, 0], dtype=torch.bool)
            predicted.append(latents)
        return torch.cat(predicted, 1)

    @wraps(SllmModel.predict_next_latents)
    def predict_next_latents(self, *args, **kwargs):
        return self.model.predict_next_latents(*args, **kwargs)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        sentence_ids: torch.Tensor | None = None,
        past_key_values: SllmCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        return_dict: bool | None = None,
        skip_logits: bool = False,
        **kwargs: torch.Tensor,
    ) -> SllmOutput | tuple:
        """
        Args:
            labels: `(batch, length)`, as the ids, not shifted; -100 is left out.
            logits_to_keep: Compute the logits of this many last positions only, or of these positions; 0 is all.
            num_items_in_batch: What the loss is divided by, by default the number of labels scored.
            skip_logits: Return no logits: the loss is computed in chunks, and all of them never exist at once.
            shift_labels: `(batch, length)`, labels already aligned with the logits; they replace `labels`. Among the
                `kwargs`, for Trainer takes each argument with "label" in its name for a column of the data.

        The rest is as in `SllmModel.forward`.
        """
        shift_labels = kwargs.pop("shift_labels", None)
        labels = shift_labels if labels is None else labels
        check_labels(labels, skip_logits, past_key_values, logits_to_keep)
        texts = None
        if past_key_values is None and not use_cache:
            given = input_ids if input_ids is not None else inputs_embeds
            texts, position_ids = find_texts(given, attention_mask, position_ids, kwargs), None
        else:
            check_unknown(kwargs)
        if texts is not None:
            input_ids, inputs_embeds, sentence_ids, labels, shift_labels = texts.unpack(
                input_ids=input_ids,
                inputs_embeds=inputs_embeds,
                sentence_ids=sentence_ids,
                labels=labels,
                shift_labels=shift_labels,
            )
            attention_mask = texts.mask
            if shift_labels is not None:  # what follows the end of a text is another text
                shift_labels = shift_labels.masked_fill(texts.ends, -100)
        last = logits_to_keep if isinstance(logits_to_keep, int) else 0
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            sentence_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            states_to_keep=last if texts is None else 0,
        )
        pack = nn.Identity() if texts is None else partial(texts.pack, kept=last)
        states, logits = pack(outputs.last_hidden_state), None
        if not skip_logits:
            kept = slice(None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.compute_logits(states[:, kept])
        stop_logits = None
        if self.config.stop_head:
            stop_logits = self.model.sentence_decoder.stop_head(outputs.token_states).squeeze(-1)

        loss, losses = None, None
        if labels is not None:
            own, following = aligned_targets(outputs.layout, labels, shift_labels)
            targets = pack(outputs.layout.scatter(following, -100)).flatten()
            items = (targets != -100).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            token_logits = None if logits is None else logits.flatten(0, 1)
            sums = {"next_sentence": self.sum_token_loss(states.flatten(0, 1), targets, token_logits)}
            if self.training:
                sums.update(self._sum_training_losses(outputs, stop_logits, own))
            losses = {name: total / items for name, total in sums.items()}
            loss = self.weighted_sum(losses)
        output = SllmOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=each(pack, outputs.hidden_states or ()) or None,
            losses=losses,
            stop_logits=None if stop_logits is None else pack(stop_logits),
        )
        return output if return_dict is not False else output.to_tuple()

    def _sum_training_losses(
        self, outputs: SllmModelOutput, stop_logits: torch.Tensor | None, own: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The named terms of the loss that are there in training alone, summed.

        Args:
            outputs: Of texts in rows of their own.
            own: `(N,)` labels of the tokens themselves.
        """
        layout, sums = outputs.layout, {}
        if self.config.reconstruction_weight > 0 and len(own):
            given = (layout, outputs.token_embeds, outputs.latents, own)
            sums["reconstruction"] = self.sum_token_loss(*closed_reconstruction(self.model.sentence_decoder, *given))
        if self.config.bag_of_words_weight > 0:
            heads = (self.shortlist_head, self.lm_head, self.adjust_logits)
            sums["bag_of_words"] = bag_of_words_loss(outputs.last_hidden_state, layout, own, *heads)
        if self.config.next_latent_weight > 0:
            sums["next_latent"] = next_latent_loss(*outputs.next_latents, layout, own, self.next_latent_head)
        if self.config.contrastive_weight > 0:
            latent_output = self.model.latent_output
            predicted = latent_output(outputs.next_latents[0].to(latent_output.weight.dtype))
            temperature = self.config.contrastive_temperature
            sums["contrastive"] = contrastive_loss(predicted, outputs.latents, layout, own, temperature)
        if outputs.latent_prediction is not None:
            sums["latent_prediction"] = (outputs.latent_prediction * scored_tokens(layout, own)).sum()
        if outputs.latent_statistics is not None:
            sums["kl"] = kl_divergence(self.config, *outputs.latent_statistics)
        if stop_logits is not None:
            sums["stop"] = stop_loss(stop_logits.flatten()[layout.token_index], layout.token_closes)
        return sums


__all__ = ["SllmForCausalLM", "SllmModel", "SllmModelOutput", "SllmOutput", "SllmPreTrainedModel"]
