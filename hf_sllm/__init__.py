"""hf_sllm: a sentence level for any Hugging Face causal language model.

Importing it registers the models with transformers' auto classes. Only the command `hf-sllm` waits with that until it
has something to do: it shows its help without loading torch.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .modeling import SentenceVaeConfig, SentenceVaeModel, SllmCache, SllmConfig, SllmForCausalLM, SllmModel

__version__ = "0.1.0"

__all__ = [
    "SentenceVaeConfig",
    "SentenceVaeModel",
    "SllmCache",
    "SllmConfig",
    "SllmForCausalLM",
    "SllmModel",
]


def register() -> None:
    """Registers the models with transformers' auto classes; again is harmless."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from .modeling import SentenceVaeConfig, SentenceVaeModel, SllmConfig, SllmForCausalLM, SllmModel
    from .modeling.modeling_text_codec import TextCodecConfig, TextCodecModel

    AutoConfig.register("sentence_vae", SentenceVaeConfig, exist_ok=True)
    AutoConfig.register("sllm", SllmConfig, exist_ok=True)
    AutoModel.register(SentenceVaeConfig, SentenceVaeModel, exist_ok=True)
    AutoConfig.register("text_codec", TextCodecConfig, exist_ok=True)
    AutoModel.register(TextCodecConfig, TextCodecModel, exist_ok=True)
    AutoModel.register(SllmConfig, SllmModel, exist_ok=True)
    AutoModelForCausalLM.register(SllmConfig, SllmForCausalLM, exist_ok=True)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    from . import modeling

    return getattr(modeling, name)


def runs_command() -> bool:
    """Whether this process is the command `hf-sllm`, or `python -m hf_sllm.cli`."""
    script = (getattr(sys, "argv", None) or [""])[0]  # of the latter, while the package is imported, only "-m"
    as_module = ("-m", "hf_sllm.cli") in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    return as_module or Path(script).stem == "hf-sllm"


if not runs_command():
    register()
