"""The sentence-level language model: encoder, backbone, decoder (SentenceVAE, arXiv 2408.00655, section 3.2).

tokens of sentence j ──► SentenceEncoder ──► latents z_j
start, z_1 … z_{j-1} ──► backbone ──► predicted latents of sentence j
predicted latents, tokens of j ──► SentenceDecoder ──► states, one for each token
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .cache_sllm import SllmCache
from .configuration_sllm import SllmConfig
from .generation_sllm import SllmGenerationMixin
from .initialization_sllm import FromBackboneMixin
from .losses_sllm import kl_divergence, stop_loss
from .modeling_sentence_vae import (
    SentenceDecoder,
    SentenceEncoder,
    SentenceVaePreTrainedModel,
    adjust_logits,
    all_rows,
    reconstruction_states,
    sample_latents,
    scatter_tokens,
    unit_linear,
)
from .packing_sllm import DecoderPositions, Stream, decoder_positions, decoder_tail
from .segmentation_sllm import SentenceLayout, SentenceSegmenter
from .shortlist_sllm import bag_of_words_loss
from .validation_sllm import (
    check_inputs,
    check_length,
    check_mask,
    check_positions,
    check_skip_logits,
    warn_of_attentions,
)


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
        latents: `(C, num_latents, latent_size)` of the C sentences closed, row after row; this and what follows is
            `None` where one token more closes none.
        latent_statistics: Mean and log-variance of these, if the config has a KL term.
        layout: The sentences.
        token_embeds: `(N, width)`.
    """

    token_states: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    latent_statistics: tuple[torch.Tensor, torch.Tensor] | None = None
    layout: SentenceLayout | None = None
    token_embeds: torch.Tensor | None = None


@dataclass
class SllmOutput(CausalLMOutputWithPast):
    """
    Attributes:
        loss: In evaluation the mean cross-entropy of the next token; in training the weighted sum of `losses`.
        logits: `(batch, length, vocab)`; `logits[:, t]` is the distribution of token t + 1 given tokens 0 to t.
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
        if isinstance(module, SllmModel):
            unit_linear(module.latent_output)
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
        self.latent_output = nn.Linear(width, size)
        self.segmenter = SentenceSegmenter(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

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
        shape = check_inputs(input_ids, None, sentence_ids, self.config.vocab_size)
        mask = check_mask(attention_mask, shape, input_ids.device)
        layout = self.segmenter.layout(input_ids, mask, sentence_ids=sentence_ids)
        embeds = self.get_input_embeddings()(input_ids.flatten()[layout.token_index])
        latents, _ = self.sentence_encoder(embeds, layout.token_sentence)
        count = torch.bincount(layout.sentence_row, minlength=len(mask))
        padded = latents.new_zeros(len(mask), int(count.max()), *latents.shape[1:])
        padded = padded.index_put((layout.sentence_row, layout.sentence_rank), latents)
        return padded, torch.arange(padded.shape[1], device=mask.device) < count[:, None]

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
        batch_size = len(latents)
        if sentence_mask is None:
            sentence_mask = torch.ones(latents.shape[:2], dtype=torch.bool, device=latents.device)
        states = latents.flatten(2)
        if begins:
            start = all_rows(self.start_latents, states.device).to(states)[None].expand(batch_size, -1, -1)
            states = torch.cat([start, states], 1)
            sentence_mask = F.pad(sentence_mask, (1, 0), value=True)
        position_ids = sentence_mask.long().cumsum(1) - 1
        attention_mask = sentence_mask
        if cache is not None:
            if not begins:
                position_ids = position_ids + cache.num_sentences[:, None] + 1
            attention_mask = cache.append_sentences(position_ids.masked_fill(~sentence_mask, -1))
        check_length(position_ids, self.config.text_config, "text_config")
        embeds = self.latent_input(states.to(self.latent_input.weight.dtype))
        states = self.language_model(
            inputs_embeds=embeds.to(self.get_input_embeddings().weight.dtype),
            attention_mask=attention_mask.long(),
            position_ids=position_ids.clamp(min=0),
            past_key_values=None if cache is None else cache.language_model,
            use_cache=cache is not None,
        ).last_hidden_state
        predicted = self.latent_output(states.to(self.latent_output.weight.dtype))
        return predicted.unflatten(-1, (self.config.num_latents, self.config.latent_size))

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
    ) -> SllmModelOutput | tuple:
        """
        Args:
            input_ids: `(batch, length)`; those after the ones in the cache.
            attention_mask: `(batch, length)`, 0 for padding; what the cache holds may come before.
            position_ids: `(batch, length)`; only checked, since positions follow from the mask.
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
        shape = check_inputs(input_ids, inputs_embeds, sentence_ids, self.config.vocab_size)
        cache = self._prepare_cache(past_key_values, use_cache, sentence_ids, inputs_embeds)
        device = (input_ids if input_ids is not None else inputs_embeds).device
        if cache is not None and attention_mask is not None:
            attention_mask = cache.newest(attention_mask, shape[1])
        mask = check_mask(attention_mask, shape, device)
        check_positions(position_ids, mask)
        length = shape[1]
        if cache is not None and cache.must_replay:
            input_ids, mask = torch.cat([cache.token_ids, input_ids], 1), torch.cat([cache.token_mask, mask], 1)
            cache.reset()

        kept = min(states_to_keep, length) if states_to_keep else length
        past = None if cache is None or cache.is_empty else cache.past
        if past is not None and not mask.any():  # nothing but padding
            cache.append_tokens(input_ids, mask, mask)
            states = cache.last_state[:, None].expand(-1, kept, -1)
            return SllmModelOutput(last_hidden_state=states, past_key_values=cache, token_states=states)
        layers = self.wanted_layers(output_hidden_states)
        if past is not None and length == 1 and not layers.kwargs and self._only_continues(input_ids, mask, cache):
            states = self._continue_sentences(input_ids, mask, cache)
            return SllmModelOutput(last_hidden_state=states, past_key_values=cache, token_states=states)

        open_length = None if past is None else cache.open_length
        overlooked = self.config.boundary_dropout if self.training else 0.0
        layout = self.segmenter.layout(input_ids, mask, open_length, sentence_ids, overlooked)
        table = inputs_embeds if inputs_embeds is not None else self.get_input_embeddings()(input_ids)
        embeds = table.flatten(0, 1)[layout.token_index]  # (N, width)
        mean, log_variance = self._encode_closed(embeds, layout, None if past is None else cache)
        latents = sample_latents(self.config, mean, log_variance, self.training)  # (C, num_latents, latent_size)
        predicted = self._predict_for_layout(latents, layout, cache, begins=past is None)

        read, before, embeds_read, tail = layout, past, embeds, None  # what the decoder reads, and what comes before
        if past is None and kept < length:
            depth = self.sentence_decoder.model.config.num_hidden_layers
            last_rank = mask[:, : mask.shape[1] - kept + 1].sum(1) - 1
            tail = decoder_tail(
                layout, last_rank, depth, self.config.decoder_context_length, self.config.prefix_length
            )
            read, before = layout.from_sentence(tail.first_sentence), tail.past
            embeds_read = table.flatten(0, 1)[read.token_index]
            predicted = predicted[tail.begun_sentences(layout)]
        begins = torch.full_like(layout.row_length, past is None, dtype=torch.bool)
        if cache is not None and past is None:
            cache.num_tokens = cache.num_sentences = torch.zeros_like(layout.row_length)
        positions = decoder_positions(
            read,
            self.config.prefix_length,
            restart=self.config.decoder_context_length == 0,
            begins=begins,
            followed=read.token_closes,
            past=before,
        )
        check_length(positions.stream.position_ids, self.config.sentence_decoder_config, "sentence_decoder_config")
        states = self.sentence_decoder(predicted, embeds_read, positions, cache=cache, hidden_states=layers)
        if cache is not None:
            cache.append_tokens(input_ids, mask, scatter_tokens(layout.token_closes, layout, mask.shape))
            if tail is not None:
                cache.drop_slots_before(tail.first_key)
        rank = mask.long().cumsum(1)[:, -kept:] - 1 - (layout.row_length - read.row_length)[:, None]
        slot = self._output_slots(positions, read, rank, begins=past is None)
        last_hidden_state = states[slot]  # (batch, kept, width)
        if past is not None:
            # Before a row's first new token stands what follows the last one it had.
            last_hidden_state = torch.where((rank < 0)[..., None], cache.last_state[:, None], last_hidden_state)
        if cache is not None:
            cache.last_state = last_hidden_state[:, -1]
        token_states = None
        if self.config.stop_head:
            token_states = scatter_tokens(states[positions.token_slot], read, mask.shape)[:, -kept:]
        output = SllmModelOutput(
            last_hidden_state=last_hidden_state,
            past_key_values=cache,
            hidden_states=layers.gather(states, lambda layer: layer[slot]),
            token_states=token_states,
            latents=latents,
            latent_statistics=None if log_variance is None else (mean, log_variance),
            layout=layout,
            token_embeds=embeds,
        )
        return output if return_dict is not False else output.to_tuple()

    def _only_continues(self, input_ids: torch.Tensor, mask: torch.Tensor, cache: SllmCache) -> bool:
        """Whether one token more closes no sentence: the step that nearly all of generation consists of."""
        if self.training or self.config.conditioning != "prefix":
            return False
        return not (self.segmenter.closes(input_ids[:, 0], cache.open_length) & mask[:, 0]).any()

    def _continue_sentences(self, input_ids: torch.Tensor, mask: torch.Tensor, cache: SllmCache) -> torch.Tensor:
        """States `(batch, 1, width)` after one token more of each open sentence, where the mask is true."""
        restart = self.config.decoder_context_length == 0
        row = torch.arange(len(mask), device=mask.device)
        index = cache.num_positions.masked_fill(~mask[:, 0], -1)
        position_ids = (cache.open_length if restart else cache.num_tokens) + 1
        query = Stream(row, cache.num_sentences, index, position_ids).map(lambda values: values[:, None])
        check_length(query.position_ids, self.config.sentence_decoder_config, "sentence_decoder_config")
        states = self.sentence_decoder.extend(self.get_input_embeddings()(input_ids), query, cache)
        states = torch.where(mask[..., None], states, cache.last_state[:, None])
        cache.append_open(input_ids, mask)
        cache.last_state = states[:, -1]
        return states

    def _output_slots(
        self, positions: DecoderPositions, layout: SentenceLayout, rank: torch.Tensor, begins: bool
    ) -> torch.Tensor:
        """Where in the stream what follows the row's token of each rank `(batch, kept)` is predicted. So padding on
        the right repeats the last token's, and padding on the left, of rank -1, has the first token's."""
        slot = torch.zeros_like(rank)
        if begins:
            first_slot = torch.searchsorted(positions.stream.row, torch.arange(len(rank), device=rank.device))
            slot = slot + (first_slot + self.config.prefix_length - 1)[:, None]
        row_start = layout.row_length.cumsum(0) - layout.row_length
        seen = rank >= 0
        slot[seen] = positions.output_slot[(row_start[:, None] + rank)[seen]]
        return slot

    def _prepare_cache(
        self,
        past_key_values: SllmCache | None,
        use_cache: bool | None,
        sentence_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
    ) -> SllmCache | None:
        if past_key_values is None and not use_cache:
            return None
        # A class loaded with the remote code has another identity, so the name decides.
        if past_key_values is not None and type(past_key_values).__name__ != "SllmCache":
            raise ValueError(
                f"`past_key_values` is a {type(past_key_values).__name__}: this model needs an `SllmCache`, which "
                "`use_cache=True` makes."
            )
        if sentence_ids is not None or inputs_embeds is not None:
            name = "sentence_ids" if sentence_ids is not None else "inputs_embeds"
            raise ValueError(f"`{name}` cannot be cached: the cache works from token ids. Pass `use_cache=False`.")
        return SllmCache(self.config) if past_key_values is None else past_key_values

    def _encode_closed(
        self, embeds: torch.Tensor, layout: SentenceLayout, cache: SllmCache | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Latents of the C sentences that the input closes, with what the cache holds of them."""
        closed = layout.sentence_closed[layout.token_sentence]  # (N,)
        sentence_of_token = layout.sentence_closed.cumsum(0)[layout.token_sentence] - 1
        if cache is None and len(closed) and not closed.any():
            # Where weights are sharded, every process has to call every part: here on a sentence that nobody reads.
            mean, log_variance = self.sentence_encoder(embeds[:1], layout.token_sentence[:1])
            return mean[:0], None if log_variance is None else log_variance[:0]
        embeds, sentence = embeds[closed], sentence_of_token[closed]
        if cache is not None and cache.open_ids.shape[1]:
            # The first new sentence of a row continues its open one.
            continues = (layout.token_rank == 0) & closed
            owner = torch.full_like(cache.open_length, -1)
            owner[layout.token_row[continues]] = sentence_of_token[continues]
            is_open = torch.arange(cache.open_ids.shape[1], device=owner.device) < cache.open_length[:, None]
            is_open = is_open & (owner >= 0)[:, None]
            open_embeds = self.get_input_embeddings()(cache.open_ids[is_open])
            sentence = torch.cat([owner[:, None].expand_as(is_open)[is_open], sentence])
            sentence, order = sentence.sort(stable=True)
            embeds = torch.cat([open_embeds, embeds])[order]
        if not len(sentence):
            none = embeds.new_zeros(0, self.config.num_latents, self.config.latent_size)
            return none, (none if self.config.kl_weight > 0 else None)
        return self.sentence_encoder(embeds, sentence)

    def _predict_for_layout(
        self, latents: torch.Tensor, layout: SentenceLayout, cache: SllmCache | None, begins: bool
    ) -> torch.Tensor:
        """Predicted latents `(J, num_latents, latent_size)` of the sentences that begin, row after row."""
        if not begins and not len(latents):
            return latents
        row = layout.sentence_row[layout.sentence_closed]  # (C,)
        count = torch.bincount(row, minlength=len(layout.row_length))
        rank = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        padded = latents.new_zeros(len(count), int(count.max()), *latents.shape[1:])
        padded = padded.index_put((row, rank), latents)
        sentence_mask = torch.arange(padded.shape[1], device=row.device) < count[:, None]
        predicted = self.predict_next_latents(padded, sentence_mask, cache, begins)
        if begins:
            sentence_mask = F.pad(sentence_mask, (1, 0), value=True)
        return predicted[sentence_mask]


class SllmForCausalLM(FromBackboneMixin, SllmPreTrainedModel, SllmGenerationMixin):
    """The model with its LM head: a causal language model like any other, that thinks a sentence at a time."""

    _tp_plan = {"lm_head": "colwise_gather_output"}

    _auto_class = "AutoModelForCausalLM"

    def __init__(self, config: SllmConfig):
        super().__init__(config)
        self.model = SllmModel(config)
        width = self.get_input_embeddings().embedding_dim
        self.lm_head = nn.Linear(width, config.vocab_size, bias=config.lm_head_bias)
        if config.bag_of_words_weight > 0:
            self.shortlist_head = nn.Linear(width, width)
        self.tie_head(self.get_input_embeddings(), "lm_head.weight")
        self.post_init()

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, new_embeddings):
        self.lm_head = new_embeddings

    def encode_sentences(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        sentence_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `SllmModel.encode_sentences`."""
        return self.model.encode_sentences(input_ids, attention_mask, sentence_ids)

    def predict_next_latents(self, latents: torch.Tensor, sentence_mask: torch.Tensor | None = None) -> torch.Tensor:
        """See `SllmModel.predict_next_latents`."""
        return self.model.predict_next_latents(latents, sentence_mask)

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor) -> list[torch.Tensor]:
        """Greedily writes one sentence from each of the `(sentences, num_latents, latent_size)` latents, predicted or
        encoded, without the context before it.

        Returns:
            One tensor of token ids for each sentence.
        """
        return self.model.sentence_decoder.write(
            latents,
            self.get_input_embeddings(),
            self.compute_logits,
            self.model.segmenter.closes,
            self.config.max_sentence_length,
        )

    def compute_logits(self, states: torch.Tensor) -> torch.Tensor:
        """`(…, width)` states to `(…, vocab)` logits."""
        return self.adjust_logits(self.lm_head(states))

    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """What the backbone does to the LM head's output."""
        return adjust_logits(logits, self.config.text_config)

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
        if kwargs:
            raise TypeError(f"forward() has no argument {', '.join(kwargs)}.")
        labels = shift_labels if labels is None else labels
        check_skip_logits(skip_logits, labels)
        if labels is not None and past_key_values is not None:
            raise ValueError("`labels` came with `past_key_values`: whole texts are scored, so leave the cache out.")
        if labels is not None and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            raise ValueError(
                f"`logits_to_keep` is {logits_to_keep}: with `labels` all logits are needed, so leave it 0."
            )
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
            states_to_keep=logits_to_keep if isinstance(logits_to_keep, int) else 0,
        )
        logits = None
        if not skip_logits:
            kept = slice(None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.compute_logits(outputs.last_hidden_state[:, kept])
        stop_logits = None
        if self.config.stop_head:
            stop_logits = self.model.sentence_decoder.stop_head(outputs.token_states).squeeze(-1)

        loss, losses = None, None
        if labels is not None:
            own, following = self._targets(outputs.layout, labels, shift_labels)
            losses = self._losses(outputs, logits, stop_logits, own, following, num_items_in_batch)
            loss = self.weighted_sum(losses)
        output = SllmOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            losses=losses,
            stop_logits=stop_logits,
        )
        return output if return_dict is not False else output.to_tuple()

    def _targets(
        self, layout: SentenceLayout, labels: torch.Tensor, shift_labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels `(N,)` of the tokens themselves and of the token after each, whatever padding lies between."""
        given = (labels if shift_labels is None else shift_labels).flatten()[layout.token_index]
        follows = layout.token_row[1:] == layout.token_row[:-1]
        other = torch.full_like(given, -100)
        if shift_labels is not None:
            other[1:] = torch.where(follows, given[:-1], -100)
            return other, given
        other[:-1] = torch.where(follows, given[1:], -100)
        return given, other

    def _losses(
        self,
        outputs: SllmModelOutput,
        logits: torch.Tensor | None,
        stop_logits: torch.Tensor | None,
        own: torch.Tensor,
        following: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> dict[str, torch.Tensor]:
        """The named terms of the loss. Only `next_sentence`, without the focal factor, in evaluation."""
        layout, states = outputs.layout, outputs.last_hidden_state
        targets = following.new_full((states.shape[0] * states.shape[1],), -100)
        targets[layout.token_index] = following
        items = (targets != -100).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        token_logits = None if logits is None else logits.flatten(0, 1)
        losses = {"next_sentence": self.sum_token_loss(states.flatten(0, 1), targets, token_logits) / items}
        if not self.training:
            return losses
        if self.config.reconstruction_weight > 0 and len(outputs.latents):
            closed = layout.closed_sentences()
            states, positions = reconstruction_states(
                self.model.sentence_decoder,
                closed,
                outputs.token_embeds[layout.sentence_closed[layout.token_sentence]],
                outputs.latents,
                context_length=0,
            )
            closed_own = own[layout.sentence_closed[layout.token_sentence]]
            losses["reconstruction"] = self.sum_token_loss(states[positions.token_slot - 1], closed_own) / items
        if self.config.bag_of_words_weight > 0:
            bag = bag_of_words_loss(
                outputs.last_hidden_state, layout, own, self.shortlist_head, self.lm_head, self.adjust_logits
            )
            losses["bag_of_words"] = bag / items
        if outputs.latent_statistics is not None:
            losses["kl"] = kl_divergence(self.config, *outputs.latent_statistics) / items
        if stop_logits is not None:
            stops = stop_logits.flatten()[layout.token_index]
            losses["stop"] = stop_loss(stops, layout.token_closes) / items
        return losses


__all__ = ["SllmForCausalLM", "SllmModel", "SllmModelOutput", "SllmOutput", "SllmPreTrainedModel"]
