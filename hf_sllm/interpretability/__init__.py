"""What a model computes of sentences, made readable: named features, heads that do a task, a page to look at."""

from .explanations import Explanation, ExplanationScore, explain, score
from .heads import Head, find_heads, joint_ablation
from .page import feature_records, write_page
from .run import show_features

__all__ = [
    "Explanation",
    "ExplanationScore",
    "Head",
    "explain",
    "feature_records",
    "find_heads",
    "joint_ablation",
    "score",
    "show_features",
    "write_page",
]
