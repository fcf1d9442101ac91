"""Configuration of the sentence-level language model."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils.type_validators import interval

from .configuration_sentence_vae import SentenceVaeConfig
from .validation_config import value_errors


@value_errors
@strict
class SllmConfig(SentenceVaeConfig):
    r"""
    A sentence-level language model: a `SentenceVaeConfig` and the backbone that predicts its latents (section 3.2).

    Args:
        text_config (`dict | PreTrainedConfig`): The backbone's config, any causal language model's.
        memory (`dict`, *optional*): `num_layers`, 1 by default, and `num_heads`, by default the decoder's: the layers
            by which tokens read the latents of all sentences before their own, see `LatentMemory`. Without a memory,
            what lies before the decoder's context reaches them through the predicted latents alone.
        latent_predictor (`dict`, *optional*): How the next sentence's latents follow from the backbone's state, see
            `latent_predictor.py`. Its `type` is `"linear"`, a map, which is the default; `"mse"`, the mean told by a
            network; or `"flow"` or `"diffusion"`, which sample one of the ways in which a text can go on. The network
            has `num_layers`; its loss counts `weight`; a share `unconditional` of the sentences trains it without the
            state, for guidance; a share `own_inputs` of the sentences that the backbone reads are its own predictions,
            for `predict_ahead`. By default `steps`, `guidance_scale` and `noise_scale` are those of `LatentSampling`;
            `schedule` is diffusion's, `"cosine"`, `"quadratic"` or `"sigmoid"`.
        decoder_context_length (`int`): As in `SentenceVaeConfig`; here the decoder by default sees 64 positions back.
        reconstruction_weight (`float`): Weight in training of reconstructing each sentence from its own latent.
        bag_of_words_weight (`float`): Weight in training of telling, as a sentence begins, which tokens it will hold.
            Above 0 the model has a shortlist head, for `generate(shortlist_size=…)` without `fit_shortlist`.
        next_latent_weight (`float`): Weight in training of telling what the backbone will read of the next sentence.
            Above 0 the model has a head for it, which `generate(sentences_at_once=…)` needs. Nothing but that head
            learns from it.
        contrastive_weight (`float`): Weight in training of telling, by its predicted latents, each sentence from the
            others of the batch.
        contrastive_temperature (`float`): Cosines are divided by it there.
    """

    model_type = "sllm"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        **SentenceVaeConfig.sub_configs_defaults,
    }
    groups = {
        **SentenceVaeConfig.groups,
        "memory": {"num_layers": 1, "num_heads": None},
        "latent_predictor": {
            "type": "linear",
            "num_layers": 2,
            "weight": 1.0,
            "unconditional": 0.15,
            "own_inputs": 0.0,
            "steps": 20,
            "guidance_scale": 1.0,
            "noise_scale": 1.0,
            "schedule": "cosine",
        },
    }
    auto_classes = {
        "AutoConfig": "configuration_sllm.SllmConfig",
        "AutoModel": "modeling_sllm.SllmModel",
        "AutoModelForCausalLM": "modeling_sllm.SllmForCausalLM",
    }
    # What `Trainer.predict` leaves out, so that it returns the logits alone, as of any language model.
    keys_to_ignore_at_inference = ["past_key_values", "losses", "stop_logits"]
    # Encoder and decoder read their token embeddings from outside, so the default plan's names do not fit.
    base_model_fsdp_plan = None

    text_config: dict | PreTrainedConfig | None = None
    memory: dict | None = None
    latent_predictor: dict | None = None
    decoder_context_length: int = interval(min=0)(default=64)
    reconstruction_weight: float = interval(min=0.0)(default=0.0)
    bag_of_words_weight: float = interval(min=0.0)(default=0.0)
    next_latent_weight: float = interval(min=0.0)(default=0.0)
    contrastive_weight: float = interval(min=0.0)(default=0.0)
    contrastive_temperature: float = interval(min=1e-3)(default=0.1)

    @property
    def has_linear_predictor(self) -> bool:
        """Whether latents are predicted by a map alone."""
        return self.latent_predictor is None or self.latent_predictor["type"] == "linear"

    @property
    def samples_latents(self) -> bool:
        """Whether latents are sampled: then texts have no exact likelihood."""
        return not self.has_linear_predictor and self.latent_predictor["type"] != "mse"

    @property
    def latent_prediction_weight(self) -> float:
        """Of the term `latent_prediction` in the training loss."""
        return 0.0 if self.has_linear_predictor else self.latent_predictor["weight"]

    @property
    def token_config(self) -> PreTrainedConfig:
        return self.text_config


__all__ = ["SllmConfig"]
