"""How good a model is, measured so that models with different tokenizers compare."""

from .bits_per_byte import BitsPerByte, bits_per_byte, entropy_floor
from .reconstruction import Reconstruction, reconstruction

__all__ = ["BitsPerByte", "Reconstruction", "bits_per_byte", "entropy_floor", "reconstruction"]
