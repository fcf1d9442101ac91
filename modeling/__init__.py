"""The model: what travels to the Hub beside each checkpoint. Imported as `hf_sllm.modeling`."""

from .configuration_sentence_vae import SentenceVaeConfig
from .configuration_sllm import SllmConfig
from .modeling_sentence_vae import SentenceVaeModel, SentenceVaeOutput
from .modeling_sllm import SllmForCausalLM, SllmModel, SllmOutput
from .sentence_segmentation import SentenceLayout, SentenceSegmenter, boundary_tokens
from .stream_cache import SllmCache

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
