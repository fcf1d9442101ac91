"""What a model computes of sentences, made readable: named features, heads that do a task, a page to look at."""

from .explanations import Explanation, ExplanationScore, explain, score
from .files import load_sae, save_sae
from .fitting import VectorBuffer, fit, fit_vectors, measure
from .heads import Head, find_heads, joint_ablation
from .page import feature_records, write_page
from .run import show_features, show_sae, train_sae
from .sparse_autoencoder import SparseAutoencoder
from .steering import steer, strangeness, turned, typical_strength
from .vectors import Vectors, collect, recovered_loss

__all__ = [
    "Explanation",
    "ExplanationScore",
    "Head",
    "SparseAutoencoder",
    "VectorBuffer",
    "Vectors",
    "collect",
    "explain",
    "feature_records",
    "find_heads",
    "fit",
    "fit_vectors",
    "joint_ablation",
    "load_sae",
    "measure",
    "recovered_loss",
    "save_sae",
    "score",
    "show_features",
    "show_sae",
    "steer",
    "strangeness",
    "train_sae",
    "turned",
    "typical_strength",
    "write_page",
]
