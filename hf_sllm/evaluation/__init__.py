"""How good a model is, measured so that models with different tokenizers compare."""

from .bits_per_byte import BitsPerByte, LengthBits, bits_per_byte, by_sentence_length, entropy_floor, total_bits
from .context import ContextUse, Needle, context_use, needle
from .likelihood import DocumentScores, default_window, score_documents
from .reconstruction import LengthReconstruction, Reconstruction, reconstruction
from .results import Evaluation
from .run import evaluate
from .stopping import Stopping, stopping
from .writing import BrierLm, TextFigures, Writing, brier_lm, writing

__all__ = [
    "BitsPerByte",
    "BrierLm",
    "ContextUse",
    "DocumentScores",
    "Evaluation",
    "LengthBits",
    "LengthReconstruction",
    "Needle",
    "Reconstruction",
    "Stopping",
    "TextFigures",
    "Writing",
    "bits_per_byte",
    "brier_lm",
    "by_sentence_length",
    "context_use",
    "default_window",
    "entropy_floor",
    "evaluate",
    "needle",
    "reconstruction",
    "score_documents",
    "stopping",
    "total_bits",
    "writing",
]
