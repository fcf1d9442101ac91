"""Features are explained on half of the documents, scored on the others, and shown on a page."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from .explanations import Chat, ExplanationScore, Sentences, explain, score
from .page import feature_records, write_page


def show_features(
    activations: torch.Tensor,
    vectors: Sentences,
    decoder: torch.Tensor,
    path: Path,
    about: Mapping[str, str],
    explainer: str | Chat = "terms",
    scorer: Chat | None = None,
    effects: Mapping[tuple[int, int], Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> list[ExplanationScore]:
    """Writes a page of features, and `features.jsonl` beside it.

    Args:
        activations: `(N, m)` features of the vectors.
        vectors: The sentences, of two or more documents.
        decoder: `(m, d)`, the direction of each feature.
        path: The HTML file.
        about: What the features are of, to be shown: model, data, their hashes.
        explainer: `"terms"`, or a chat model: a function from instructions and a message to a reply.
        scorer: A chat model that judges explanations; needed where a chat model explains.
        effects: What turning a feature does, see `feature_records`.
        seed: Of the draws.

    Returns:
        The scores of the explanations, on documents that they were not made from.

    Raises:
        ValueError: If fewer than two explanations can be scored.
    """
    even = vectors.document % 2 == 0
    explanations = explain(activations[even], chosen(vectors, even), explainer, seed=seed)
    scores = score(explanations, activations[~even], chosen(vectors, ~even), scorer=scorer, seed=seed)
    records = feature_records(activations, vectors, decoder, explanations, scores, effects, seed)
    write_page(records, vectors, path, about)
    return scores


def chosen(vectors: Sentences, mask: torch.Tensor) -> Sentences:
    """The sentences where a mask `(N,)` is true."""
    texts = [text for text, wanted in zip(vectors.text, mask.tolist(), strict=True) if wanted]
    return SimpleNamespace(text=texts, document=vectors.document[mask], sentence=vectors.sentence[mask])


__all__ = ["show_features"]
