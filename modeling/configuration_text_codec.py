"""Configuration of the text codec."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils.type_validators import interval, positive_int_field

from .configuration_sllm import SllmConfig
from .validation_config import check_auto_map, value_errors


@value_errors
@strict
class TextCodecConfig(PreTrainedConfig):
    r"""
    A codec of texts by a language model (AriEL, arXiv 2003.13600).

    Args:
        text_config (`dict | PreTrainedConfig`): The language model's config, any causal one's.
        dimensions (`int`): Coordinates of a point; token i is told by coordinate i mod `dimensions`.
        temperature (`float`): The logits are divided by it.
        context_length (`int`): Tokens that the language model reads at most; then it forgets the first half of them.
            By default as many as its positions, but no more than 512.
        logit_step (`float`): Logits are rounded to multiples of it. 1/32 costs about 0.00006 bits a token.
        logit_margin (`float`): By how much the logits of two runs may differ. What lies so near a rounding's edge is
            told in the point.
        start_token_id, end_token_id (`int`): What a text follows and what ends it; by default the language model's bos
            and eos, or eos for both.
    """

    model_type = "text_codec"
    _auto_class = "AutoConfig"  # saving a config saves its code too
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_text_codec.TextCodecConfig",
        "AutoModel": "modeling_text_codec.TextCodecModel",
    }

    text_config: dict | PreTrainedConfig | None = None
    dimensions: int = positive_int_field(default=16)
    temperature: float = interval(min=1e-3)(default=1.0)
    context_length: int | None = None
    logit_step: float = interval(min=2.0**-10, max=1.0)(default=2.0**-5)
    logit_margin: float = interval(min=0.0, max=2.0**-12)(default=2.0**-30)
    start_token_id: int | None = None
    end_token_id: int | None = None

    def __post_init__(self, **kwargs):
        self.auto_map = {**self.auto_classes, **(kwargs.pop("auto_map", None) or {})}
        if isinstance(self.text_config, dict) and self.text_config.get("model_type") == SllmConfig.model_type:
            self.text_config = SllmConfig(**self.text_config)  # known here where the auto classes do not know it
        super().__post_init__(**kwargs)
        text_config = self.text_config
        eos = text_config.eos_token_id
        eos = eos[0] if isinstance(eos, list) else eos
        if self.end_token_id is None:
            self.end_token_id = eos
        if self.start_token_id is None:
            self.start_token_id = eos if text_config.bos_token_id is None else text_config.bos_token_id
        if self.context_length is None:
            self.context_length = min(getattr(text_config, "max_position_embeddings", None) or 512, 512)

    def validate_architecture(self):
        check_auto_map(self.auto_map)
        vocab_size = self.text_config.vocab_size
        for field in ("start_token_id", "end_token_id"):
            value = getattr(self, field)
            if value is None or not 0 <= value < vocab_size:
                raise ValueError(
                    f"`{field}` is {value!r}: it must be a token's id, from 0 to {vocab_size - 1}. Set it, as the "
                    "language model's config does not name one that fits."
                )
        if self.context_length < 2:
            raise ValueError(f"`context_length` is {self.context_length}: it must be at least 2.")


__all__ = ["TextCodecConfig"]
