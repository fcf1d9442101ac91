"""Features are fitted on half of the documents and measured on the others; then explained, scored and shown."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from .explanations import Chat, ExplanationScore, Sentences, explain, score
from .files import load_sae, save_sae
from .fitting import Measured, fit_vectors, measure
from .page import feature_records, write_page
from .vectors import Recovered, collect, recovered_loss


class FittedSae(NamedTuple):
    """How well an autoencoder does on documents that it was not fitted on.

    Attributes:
        trained, untrained: Itself, and one of the same shape that learned nothing.
        losses: Of both inside the model, where they are of predicted latents.
    """

    trained: Measured
    untrained: Measured
    losses: tuple[Recovered, ...]


def train_sae(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Mapping[str, Any]],
    folder: str | Path,
    site: str = "predicted_latents",
    steps: int = 2000,
    limit: int = 6000,
    seed: int = 0,
    **settings: Any,
) -> FittedSae:
    """Fits a sparse autoencoder on every second document, saves it, and measures it on the others.

    Args:
        folder: For the autoencoder.
        site, limit: See `collect`.
        steps, seed, settings: See `fit_vectors`.

    Raises:
        ValueError: If the site, a setting or the documents do not fit, see `collect` and `fit`.
    """
    documents = list(documents)
    vectors = collect(model, tokenizer, documents, site, limit)
    even = vectors.document % 2 == 0
    sae, untrained = (fit_vectors(vectors.x[even], count, seed=seed, **settings) for count in (steps, 0))
    save_sae(sae, folder, site=site, model=model.name_or_path)
    losses: tuple[Recovered, ...] = ()
    if site == "predicted_latents":
        others = documents[len(set(vectors.document.tolist())) :]
        if len(others) < 2:  # all were collected, so the model's loss is that of the same documents
            others = documents
        losses = tuple(recovered_loss(model, tokenizer, others, one, min(limit, 1000)) for one in (sae, untrained))
    return FittedSae(measure(sae, vectors.x[~even]), measure(untrained, vectors.x[~even]), losses)


def show_sae(
    folder: str | Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Mapping[str, Any]],
    path: Path,
    limit: int = 6000,
) -> list[ExplanationScore]:
    """Explains the features of an autoencoder and writes their page, see `show_features`.

    Raises:
        FileNotFoundError: If the folder holds no autoencoder.
        ValueError: If fewer than two explanations can be scored.
    """
    sae, about = load_sae(folder)
    vectors = collect(model, tokenizer, documents, about.get("site", "latents"), limit)
    noted = {"model": model.name_or_path, "autoencoder": str(folder), "site": about.get("site", "latents")}
    return show_features(sae.encode(vectors.x), vectors, sae.W_dec, path, noted)


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
