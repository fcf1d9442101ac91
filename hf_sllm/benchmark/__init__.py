"""How fast an SLLM is, always beside its own bare backbone in the same run."""

from .generation import make_sides, measure_generation
from .results import Benchmark, Settings
from .run import (
    benchmark_drafting,
    benchmark_generation,
    benchmark_predictors,
    benchmark_profile,
    benchmark_training,
)
from .shapes import make_pair, random_text
from .training import TrainingSpeed, measure_training

__all__ = [
    "Benchmark",
    "Settings",
    "TrainingSpeed",
    "benchmark_drafting",
    "benchmark_generation",
    "benchmark_predictors",
    "benchmark_profile",
    "benchmark_training",
    "make_pair",
    "make_sides",
    "measure_generation",
    "measure_training",
    "random_text",
]
