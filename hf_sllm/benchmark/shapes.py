"""What is measured: a backbone and its SLLM with random weights, and a text of sentences of one length.

Speed hangs on shapes, not on weights, so no download is needed and no model's habits have a say.
"""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from hf_sllm.modeling import SllmForCausalLM

# Shapes of models on the Hub, from their config.json.
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rope_theta": 100000,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "opt-125m": {
        "model_type": "opt",
        "hidden_size": 768,
        "ffn_dim": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "word_embed_proj_dim": 768,
        "max_position_embeddings": 2048,
        "vocab_size": 50272,
    },
    "opt-350m": {
        "model_type": "opt",
        "hidden_size": 1024,
        "ffn_dim": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "word_embed_proj_dim": 512,
        "do_layer_norm_before": False,
        "max_position_embeddings": 2048,
        "vocab_size": 50272,
    },
    "opt-1.3b": {
        "model_type": "opt",
        "hidden_size": 2048,
        "ffn_dim": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "word_embed_proj_dim": 2048,
        "max_position_embeddings": 2048,
        "vocab_size": 50272,
    },
    "tiny": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "vocab_size": 300,
        "tie_word_embeddings": True,
    },
}

# The token that closes each sentence of the random text, and that no random token is.
BOUNDARY = 2


def make_pair(
    shapes: str,
    sentence_length: int,
    decoder_layers: int | list[int] | None = None,
    preset: str = "default",
    **fields: Any,
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A bare backbone, and an SLLM around another one of the same shapes.

    Args:
        shapes: One of `SHAPES`, or the name or path of a model, whose config alone is read.
        sentence_length: Longest sentence, in tokens.
        decoder_layers: See `SentenceVaeConfig.from_text_config`; with the preset "paper" the encoder has as many.
        preset: "default" or "paper", see `from_backbone`.
        fields: Of `SllmConfig`.
    """
    backbone, wrapped = (AutoModelForCausalLM.from_config(backbone_config(shapes)) for _ in range(2))
    fields = {"max_sentence_length": max(64, sentence_length), "boundary_token_ids": [BOUNDARY], **fields}
    encoder_layers = decoder_layers if preset == "paper" else None
    return backbone, SllmForCausalLM.from_backbone(
        wrapped, encoder_layers=encoder_layers, decoder_layers=decoder_layers, preset=preset, **fields
    )


def memory_fields(layers: int) -> dict[str, Any]:
    """The fields of `SllmConfig` of a memory with so many layers; none for 0."""
    return {"num_latents": 4, "pooling": "parts", "memory": {"num_layers": layers}} if layers else {}


def backbone_config(shapes: str) -> PreTrainedConfig:
    """The config of a backbone."""
    if shapes in SHAPES:
        return AutoConfig.for_model(**SHAPES[shapes], bos_token_id=0, eos_token_id=0)
    try:
        # Special tokens that the random text does not have, as of the shapes above.
        return AutoConfig.from_pretrained(shapes, bos_token_id=0, eos_token_id=0)
    except OSError as error:
        known = ", ".join(SHAPES)
        raise ValueError(f"`shapes` is {shapes!r}: neither one of {known} nor a model that can be read.") from error


def fit_shortlist(model: PreTrainedModel) -> None:
    """Lets an SLLM choose lists of tokens, from random text."""
    model.fit_shortlist(random_text(1, 512, 16, model.config.vocab_size).to(model.device))  # type: ignore[operator]


def random_text(batch_size: int, length: int, sentence_length: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    """`(batch_size, length)` random token ids in sentences of `sentence_length` tokens."""
    generator = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(BOUNDARY + 1, vocab_size, (batch_size, length), generator=generator)
    token_ids[:, sentence_length - 1 :: sentence_length] = BOUNDARY
    return token_ids
