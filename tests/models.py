"""Tiny models for the tests: every property is shown on the smallest one that can break it."""

import copy
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import hf_sllm  # noqa: F401  registers the auto classes
from hf_sllm.modeling import SllmConfig, SllmForCausalLM

# The files that travel with a checkpoint: an SLLM's and a sentence VAE's. A text codec is another model, with its own.
CHECKPOINT_CODE = [
    file
    for file in (Path(__file__).resolve().parents[1] / "modeling").glob("*.py")
    if file.name != "__init__.py" and "codec" not in file.name
]
VOCAB_SIZE = 61
BOUNDARIES = [5, 6, 7, 8, 9, 10]
COMMON = {"vocab_size": VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

# Sizes of one tiny model for each architecture, by what its config calls them.
LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
BACKBONES = {
    "llama": {"model_type": "llama", **LLAMA_LIKE, "tie_word_embeddings": True},
    "llama_untied": {"model_type": "llama", **LLAMA_LIKE, "tie_word_embeddings": False},
    "qwen3": {"model_type": "qwen3", **LLAMA_LIKE},
    "mistral": {"model_type": "mistral", **LLAMA_LIKE, "sliding_window": 128},
    "gemma3": {"model_type": "gemma3_text", **LLAMA_LIKE, "sliding_window": 128, "query_pre_attn_scalar": 8},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256},
    "opt": {
        "model_type": "opt",
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": 32,
    },
    "opt_projected": {
        "model_type": "opt",
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": 24,
    },
    "gpt_neox": {
        "model_type": "gpt_neox",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    },
}

# Every option that changes how information flows.
OPTIONS = {
    "default": {},
    "sentence_alone": {"decoder_context_length": 0},
    "short_context": {"decoder_context_length": 3},
    "one_latent": {"num_latents": 1, "latent_size": 8},
    "summed": {"num_latents": 1, "pooling": "sum"},
    "clauses": {"clause_token_ids": [11, 12, 13, 14, 15, 16, 17, 18], "min_clause_length": 3},
    "stop_head": {"stop_head": True},
    "kl": {"kl_weight": 0.1},
    "flow": {"latent_predictor": {"type": "flow", "num_layers": 1, "steps": 3}},
    "memory": {"memory": {"num_layers": 2}, "num_latents": 3, "pooling": "parts", "decoder_context_length": 3},
}


def made_once(make: Callable) -> Callable:
    """Copies of what was made before by the same arguments, in half the time, and with the same random state after."""
    made = {}

    @wraps(make)
    def wrapped(*args, **kwargs):
        key = repr((args, sorted(kwargs.items())))
        if key not in made:
            made[key] = make(*args, **kwargs), torch.get_rng_state()
        model, state = made[key]
        torch.set_rng_state(state)
        return copy.deepcopy(model)

    return wrapped


@made_once
def tiny_backbone(name: str = "llama", seed: int = 0, **kwargs) -> PreTrainedModel:
    torch.manual_seed(seed)
    settings = {**COMMON, **BACKBONES[name], **kwargs}
    backbone = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    # At the usual 0.02 a tiny model hardly depends on its input, and no test could fail.
    for parameter in backbone.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.15)
    backbone.generation_config.pad_token_id = 0
    return backbone.eval()


@made_once
def tiny_sllm(name: str = "llama", seed: int = 0, **options) -> SllmForCausalLM:
    settings = {"boundary_token_ids": BOUNDARIES, "max_sentence_length": 9, "decoder_layers": 2, **options}
    backbone = tiny_backbone(name, seed)
    model = SllmForCausalLM.from_backbone(backbone, **settings)
    # What the backbone makes of the sentences must matter to what is written.
    # What begins at zero must matter as well.
    scales = {"latent_input.weight": 0.3, "latent_output.weight": 0.3, "latent_prefix.weight": 0.3}
    scales |= {"latent_out.weight": 0.3, "modulation.weight": 0.3, "read_output.weight": 0.1, "state_gate": 0.1}
    for name, parameter in model.named_parameters():
        for ending, scale in scales.items():
            if name.endswith("." + ending):
                parameter.data.normal_(std=scale)
    return model.eval()


def option_model(option: str) -> SllmForCausalLM:
    """The tiny model with one of `OPTIONS`, or with the paper's architecture."""
    if option == "paper":
        return tiny_sllm(preset="paper", decoder_layers=1)
    return tiny_sllm(**OPTIONS[option])


def random_ids(batch_size: int, length: int, seed: int = 1) -> torch.Tensor:
    """Token ids without special tokens: about every ninth closes a sentence."""
    return torch.randint(3, VOCAB_SIZE, (batch_size, length), generator=torch.Generator().manual_seed(seed))


def padded(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different lengths as `(batch, length)` ids and mask, padded on one side."""
    length = max(len(row) for row in rows)
    token_ids, mask = torch.zeros(2, len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        token_ids[index, place], mask[index, place] = row, 1
    return token_ids, mask


def config_of(model: SllmForCausalLM, **changes) -> SllmConfig:
    return SllmConfig(**{**model.config.to_dict(), **changes})
