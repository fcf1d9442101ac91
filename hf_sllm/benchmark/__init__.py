"""How fast an SLLM is, always beside its own bare backbone in the same run."""

from .shapes import make_pair, random_text
from .training import TrainingSpeed, measure_training

__all__ = ["TrainingSpeed", "make_pair", "measure_training", "random_text"]
