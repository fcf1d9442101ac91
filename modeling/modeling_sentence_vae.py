"""The sentence VAE: an encoder that turns a sentence into latents, a decoder that writes the sentence from them.

SentenceVAE, arXiv 2408.00655, section 3.1. Both are transformers built by `AutoModel` and driven by embeddings.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .backbone_loading import FromBackboneMixin
from .configuration_sentence_vae import SentenceVaeConfig
from .latent_objectives import kl_divergence, sample_latents
from .sentence_decoder import SentenceDecoder, reconstruction_states, write_greedily
from .sentence_encoder import SentenceEncoder
from .sentence_segmentation import SentenceLayout, SentenceSegmenter
from .stream_attention import each
from .stream_texts import find_texts
from .token_losses import LMHead, chunked_token_loss, stop_loss, token_loss
from .validation_inputs import check_inputs, check_labels, check_mask, warn_of_attentions
from .validation_loading import warn_of_nameless_base


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
            if self.config.pooling == "parts":
                init.zeros_(module.state_gate)
                if self.config.kl_weight == 0 and module.latent_head.in_features == module.latent_head.out_features:
                    init.eye_(module.latent_head.weight)  # means of embeddings stay what they are
        elif isinstance(module, SentenceDecoder):
            unit_linear(module.latent_prefix, getattr(self.config.token_config, "initializer_range", 0.02))

    def state_dict(self, *args, **kwargs):
        # peft calls it to save adapters, and does not say where their base will not be found again.
        warn_of_nameless_base(self)
        return super().state_dict(*args, **kwargs)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        if type(new_embeddings) is nn.Linear:  # as a resized vocabulary brings
            new_embeddings.__class__ = LMHead
        self.lm_head = new_embeddings

    def embeds_of(
        self, token_index: torch.Tensor, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`(K, width)` embeddings of some tokens of a batch: of a long text all at once would be large."""
        if inputs_embeds is not None:
            return inputs_embeds.flatten(0, 1)[token_index]
        return self.get_input_embeddings()(input_ids.flatten()[token_index])

    def encode_all(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, sentence_ids: torch.Tensor | None
    ) -> tuple[SentenceLayout, torch.Tensor]:
        """The S sentences of a `(batch, length)` input, and their latents `(S, num_latents, latent_size)`."""
        shape = check_inputs(input_ids, None, sentence_ids, self.config.vocab_size)
        mask = check_mask(attention_mask, shape, input_ids.device)
        layout = self.segmenter.layout(input_ids, mask, sentence_ids)
        return layout, self.sentence_encoder(self.embeds_of(layout.token_index, input_ids), layout.token_sentence)[0]

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor) -> list[torch.Tensor]:
        """Greedily writes one sentence from each of the `(sentences, num_latents, latent_size)` latents, predicted or
        encoded, without the context before it.

        Returns:
            One tensor of token ids for each sentence.
        """
        body = getattr(self, "model", self)
        parts = (self.get_input_embeddings(), self.compute_logits, body.segmenter.closes)
        return write_greedily(body.sentence_decoder, latents, *parts)

    def compute_logits(self, states: torch.Tensor) -> torch.Tensor:
        """`(…, width)` states to `(…, vocab)` logits."""
        return self.adjust_logits(self.lm_head(states))

    def adjust_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """What some language models do to the LM head's output: Granite and Cohere scale it, Gemma 2 caps it."""
        config = self.config.token_config
        scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        if scale != 1.0:  # of a whole vocabulary, the product would be felt
            logits = logits * scale
        cap = getattr(config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def sum_token_loss(
        self, states: torch.Tensor, targets: torch.Tensor, logits: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Cross-entropy in nats, summed over the targets `(N,)`: of the logits `(N, vocab)` if they exist, else in
        chunks from the states `(N, width)`. In training it is focal, if the config says so."""
        gamma = self.config.focal_gamma if self.training else 0.0
        if logits is None:
            return chunked_token_loss(states, targets, self.lm_head, self.adjust_logits, gamma)
        return token_loss(logits, targets, gamma)

    def weighted_sum(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss: its named terms, each with the config's weight for it if there is one."""
        weights = {name: getattr(self.config, f"{name}_weight", 1.0) for name in losses}
        if "kl" in losses:
            weights["kl"] *= self.kl_scale
        return torch.stack([weights[name] * term for name, term in losses.items()]).sum()

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
        self.lm_head = LMHead(width, config.vocab_size, bias=config.lm_head_bias)
        self.segmenter = SentenceSegmenter(config)
        self.tie_head(self.get_input_embeddings(), "lm_head.weight")
        self.post_init()

    def get_input_embeddings(self):
        return self.sentence_encoder.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.sentence_encoder.model.set_input_embeddings(value)

    def encode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        sentence_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The latents `(sentences, num_latents, latent_size)` of the sentences of a `(batch, length)` input."""
        return self.encode_all(input_ids, attention_mask, sentence_ids)[1]

    def decode(self, latents: torch.Tensor) -> list[torch.Tensor]:
        """See `decode_latents`."""
        return self.decode_latents(latents)

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
        position_ids: torch.Tensor | None = None,
        **kwargs: torch.Tensor,
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
            position_ids: `(batch, length)`; another text begins in a row where they begin again at 0, or where
                `seq_idx` or `cu_seq_lens_q` among the `kwargs` say so.
        """
        warn_of_attentions(output_attentions)
        check_labels(labels, skip_logits)
        given = input_ids if input_ids is not None else inputs_embeds
        texts = find_texts(given, attention_mask, position_ids, kwargs)
        if texts is not None:
            input_ids, inputs_embeds, sentence_ids, labels = texts.unpack(
                input_ids=input_ids, inputs_embeds=inputs_embeds, sentence_ids=sentence_ids, labels=labels
            )
            attention_mask = texts.mask
        shape = check_inputs(input_ids, inputs_embeds, sentence_ids, self.config.vocab_size)
        mask = check_mask(attention_mask, shape, given.device)
        overlooked = self.config.boundary_dropout if self.training else 0.0
        layout = self.segmenter.layout(input_ids, mask, sentence_ids, overlooked)
        embeds = self.embeds_of(layout.token_index, input_ids, inputs_embeds)  # (N, width)
        mean, log_variance = self.sentence_encoder(embeds, layout.token_sentence)
        latents = sample_latents(self.config, mean, log_variance, self.training)

        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        before, at, layers = reconstruction_states(
            self.sentence_decoder, layout, embeds, latents, output_hidden_states=output_hidden_states
        )
        token_logits = None if skip_logits else self.compute_logits(before)  # (N, vocab)
        token_stops = None
        if self.config.stop_head:
            token_stops = self.sentence_decoder.stop_head(at).squeeze(-1)

        loss, losses = None, None
        if labels is not None:
            targets = labels.flatten()[layout.token_index]
            items = (targets != -100).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            losses = {"reconstruction": self.sum_token_loss(before, targets, token_logits) / items}
            if self.training and log_variance is not None:
                losses["kl"] = kl_divergence(self.config, mean, log_variance) / items
            if self.training and self.config.stop_head:
                losses["stop"] = stop_loss(token_stops, layout.token_closes) / items
            loss = self.weighted_sum(losses)

        def laid_out(values: torch.Tensor) -> torch.Tensor:
            return layout.scatter(values) if texts is None else texts.pack(layout.scatter(values))

        output = SentenceVaeOutput(
            loss=loss,
            logits=None if skip_logits else laid_out(token_logits),
            latents=latents,
            stop_logits=None if token_stops is None else laid_out(token_stops),
            losses=losses,
            hidden_states=each(laid_out, layers) or None,
        )
        return output if return_dict is not False else output.to_tuple()


__all__ = ["SentenceDecoder", "SentenceEncoder", "SentenceVaeModel", "SentenceVaeOutput", "SentenceVaePreTrainedModel"]
