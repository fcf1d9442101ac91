"""Training: a recipe in, a model and its figures beside the baseline's out."""

from .recipe import DataArguments, ModelArguments, Recipe, SllmTrainingArguments, load_recipe
from .run import train
from .trainer import SllmTrainer

__all__ = [
    "DataArguments",
    "ModelArguments",
    "Recipe",
    "SllmTrainer",
    "SllmTrainingArguments",
    "load_recipe",
    "train",
]
