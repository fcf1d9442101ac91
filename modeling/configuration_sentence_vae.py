"""Configuration of the sentence VAE."""

import copy
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils.type_validators import interval, positive_int_field

from .backbone_layers import fields_of_language_model, paper_fields
from .validation_config import check_config, check_entries, value_errors


@value_errors
@strict
class SentenceVaeConfig(PreTrainedConfig):
    r"""
    What turns sentences into latents and back (SentenceVAE, arXiv 2408.00655, section 3.1).

    Args:
        sentence_encoder_config, sentence_decoder_config (`dict | PreTrainedConfig`): AutoModel configs.
        num_latents, latent_size (`int`): Latent vectors per sentence, 1 in the paper, and their width.
        max_sentence_length (`int`): A sentence is closed when it has this many tokens; 64 in the paper.
        boundary_token_ids (`list[int]`): Tokens that close a sentence, see `boundary_tokens`; `eos_token_id` does too.
        clause_token_ids (`list[int]`): Further such tokens, for longer sentences.
        min_sentence_length, min_clause_length (`int`): The fewest tokens that a boundary or a clause token closes.
        decoder_context_length (`int`): How many positions back the decoder sees beyond the sentence; 0 in the paper.
        conditioning (`"prefix" | "cross_attention"`): How the decoder reads a latent: as vectors before the sentence,
            or by cross-attention as in the paper (the decoder's architecture must then have `add_cross_attention`).
        pooling (`"queries" | "parts" | "sum"`): A latent is the encoder's state at a learned query before the
            sentence, or the mean of one of `num_latents` equal parts of the sentence, or, as in the paper, the
            normalised sum of the token states, with one latent.
        stop_head (`bool`): Also predict from each token's state whether it closes the sentence, as in the paper.
        focal_gamma (`float`): Exponent of the focal factor of the training loss; 0 is cross-entropy.
        stop_weight (`float`): Weight of the stop term of the training loss.
        kl (`dict`): The KL term of the training loss: its `weight`, 0 for none; each unit's KL is clamped to lie
            between `free_bits` and `max_bits`, outside of which it has no gradient.
        dropout (`dict`): What is hidden in training: shares of the decoder's `tokens`, sentences' `latents`, batches'
            `context`, and ends of sentences, `boundaries`; and `latent_noise`, the standard deviation of the noise
            added to latents.
        lm_head_bias (`bool`): Whether the LM head has a bias, as a few backbones' heads do.
    """

    model_type = "sentence_vae"
    _auto_class = "AutoConfig"  # saving a config saves its code too
    sub_configs_defaults = {
        "sentence_encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "sentence_decoder_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }
    # Fields that belong together are one field, as `rope_parameters` is. By the names that they had alone they are
    # read and set as well.
    groups: ClassVar[dict[str, dict[str, Any]]] = {
        "kl": {"weight": 0.0, "free_bits": 0.0, "max_bits": None},
        "dropout": {"tokens": 0.0, "latents": 0.0, "context": 0.0, "boundaries": 0.0, "latent_noise": 0.0},
    }
    old_names = {
        "kl_weight": ("kl", "weight"),
        "kl_free_bits": ("kl", "free_bits"),
        "kl_max_bits": ("kl", "max_bits"),
        "token_dropout": ("dropout", "tokens"),
        "latent_dropout": ("dropout", "latents"),
        "context_dropout": ("dropout", "context"),
        "boundary_dropout": ("dropout", "boundaries"),
        "latent_noise": ("dropout", "latent_noise"),
    }
    # The auto classes that a saved checkpoint names, so that `trust_remote_code=True` finds them all.
    auto_classes = {
        "AutoConfig": "configuration_sentence_vae.SentenceVaeConfig",
        "AutoModel": "modeling_sentence_vae.SentenceVaeModel",
    }

    sentence_encoder_config: dict | PreTrainedConfig | None = None
    sentence_decoder_config: dict | PreTrainedConfig | None = None
    num_latents: int = positive_int_field(default=2)
    latent_size: int | None = None
    max_sentence_length: int = positive_int_field(default=64)
    boundary_token_ids: list[int] | None = None
    clause_token_ids: list[int] | None = None
    min_sentence_length: int = positive_int_field(default=2)
    min_clause_length: int = positive_int_field(default=8)
    decoder_context_length: int = interval(min=0)(default=0)
    conditioning: Literal["prefix", "cross_attention"] = "prefix"
    pooling: Literal["queries", "parts", "sum"] = "queries"
    stop_head: bool = False
    focal_gamma: float = interval(min=0.0)(default=0.0)
    stop_weight: float = interval(min=0.0)(default=1.0)
    kl: dict | None = None
    dropout: dict | None = None
    lm_head_bias: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        for name, (group, key) in self.old_names.items():
            setattr(self, group, {key: kwargs.pop(name)} if name in kwargs else getattr(self, group) or {})
        self.auto_map = {**self.auto_classes, **(kwargs.pop("auto_map", None) or {})}
        super().__post_init__(**kwargs)
        self.boundary_token_ids = sorted(set(self.boundary_token_ids or []))
        self.clause_token_ids = sorted(set(self.clause_token_ids or []))
        self.latent_size = self.token_config.hidden_size if self.latent_size is None else self.latent_size

    def __setattr__(self, name, value):
        if name in self.groups and value is not None:
            # Entries that are not given stay as they are. A new mapping, so that a copied config keeps its own.
            value = {**(vars(self).get(name) or self.groups[name]), **value}
            check_entries(name, value, self.groups[name], self.old_names)
        super().__setattr__(name, value)

    @property
    def token_config(self) -> PreTrainedConfig:
        """The sub-config whose model owns the token embeddings."""
        return self.sentence_encoder_config

    @property
    def vocab_size(self) -> int:
        return self.token_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self.token_config.vocab_size = value

    @property
    def prefix_length(self) -> int:
        """Decoder positions before each sentence: its latents, or one start vector if those are cross-attended."""
        return self.num_latents if self.conditioning == "prefix" else 1

    def validate_architecture(self):
        check_config(self)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        # transformers would only warn, and build a default model of several billion parameters.
        if config_dict.get("model_type", cls.model_type) != cls.model_type:
            raise ValueError(
                f"`model_type` is {config_dict['model_type']!r}, not {cls.model_type!r}: see `from_backbone`."
            )
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def from_text_config(cls, text_config, encoder_layers=2, decoder_layers=None, **kwargs):
        """The config of a model whose encoder and decoder have the architecture of a language model.

        Args:
            text_config: The language model's config.
            encoder_layers: Which of its layers the encoder has, or how many: then the first ones.
            decoder_layers: Which of its layers the decoder has, or how many: then half of them the first ones, half
                the last ones. By default a sixth of the language model's, but at least 2.

        Raises:
            TypeError: If a keyword is no field.
        """
        unknown = sorted(set(kwargs) - set(cls.__dataclass_fields__) - set(cls.old_names))
        if unknown:
            raise TypeError(f"{cls.__name__} has no field {', '.join(unknown)}: see its docstring for those it has.")
        text_config = copy.deepcopy(text_config)  # a composite sets fields of its parts, the caller's stay as they are
        fields = fields_of_language_model(text_config, encoder_layers, decoder_layers)
        if "text_config" in cls.sub_configs_defaults:
            fields["text_config"] = text_config
        return cls(**{**fields, **kwargs})

    @classmethod
    def paper(cls, text_config, encoder_layers=1, decoder_layers=1, **kwargs):
        """The paper's architecture, see `paper_fields`; 1 to 4 layers on each side."""
        fields = {**paper_fields(text_config, decoder_layers, kwargs.get("max_sentence_length", 64)), **kwargs}
        return cls.from_text_config(text_config, encoder_layers, **fields)


def entry(group: str, key: str) -> property:
    """An attribute that reads and sets an entry of a mapping."""
    return property(lambda self: getattr(self, group)[key], lambda self, value: setattr(self, group, {key: value}))


for name, place in SentenceVaeConfig.old_names.items():
    setattr(SentenceVaeConfig, name, entry(*place))


__all__ = ["SentenceVaeConfig"]
