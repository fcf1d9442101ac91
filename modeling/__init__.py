"""The model: what travels to the Hub beside each checkpoint. Imported as `hf_sllm.modeling`."""

from .cache_sllm import SllmCache
from .configuration_sentence_vae import SentenceVaeConfig
from .configuration_sllm import SllmConfig
from .modeling_sentence_vae import SentenceVaeModel, SentenceVaeOutput
from .modeling_sllm import SllmForCausalLM, SllmModel, SllmOutput
from .segmentation_sllm import SentenceLayout, SentenceSegmenter, boundary_tokens

__all__ = [
    "SentenceLayout",
    "SentenceSegmenter",
    "SentenceVaeConfig",
    "SentenceVaeModel",
    "SentenceVaeOutput",
    "SllmCache",
    "SllmConfig",
    "SllmForCausalLM",
    "SllmModel",
    "SllmOutput",
    "boundary_tokens",
]
