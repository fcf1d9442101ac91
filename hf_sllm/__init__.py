"""hf_sllm: a sentence level for any Hugging Face causal language model.

Importing it registers the models with transformers' auto classes.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .modeling import SentenceVaeConfig, SentenceVaeModel, SllmCache, SllmConfig, SllmForCausalLM, SllmModel

__version__ = "0.1.0"

AutoConfig.register("sentence_vae", SentenceVaeConfig, exist_ok=True)
AutoConfig.register("sllm", SllmConfig, exist_ok=True)
AutoModel.register(SentenceVaeConfig, SentenceVaeModel, exist_ok=True)
AutoModel.register(SllmConfig, SllmModel, exist_ok=True)
AutoModelForCausalLM.register(SllmConfig, SllmForCausalLM, exist_ok=True)


__all__ = [
    "SentenceVaeConfig",
    "SentenceVaeModel",
    "SllmCache",
    "SllmConfig",
    "SllmForCausalLM",
    "SllmModel",
]
