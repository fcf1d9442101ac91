"""Vectors of sentences from a model, and what an autoencoder of them costs when the model reads its output instead."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hf_sllm.evaluation.loop import evaluation_mode
from hf_sllm.inspection.sample import Sample, take_sample
from hf_sllm.inspection.scores import encode, predict, score_next_sentences

from .sparse_autoencoder import SparseAutoencoder

SITES = ("latents", "predicted_latents")


@dataclass
class Vectors:
    """`N` vectors, each of a sentence.

    Attributes:
        x: `(N, d)`, a sentence's latents one after the other.
        document: `(N,)` the document of each.
        sentence: `(N,)` the number of the sentence in its document, from 0.
        text: The sentences. A prediction has the text of the sentence that it predicts.
    """

    x: torch.Tensor
    document: torch.Tensor
    sentence: torch.Tensor
    text: Sequence[str]

    def __getitem__(self, mask: torch.Tensor) -> "Vectors":
        """Those where a mask `(N,)` is true."""
        text = [text for text, wanted in zip(self.text, mask.tolist(), strict=True) if wanted]
        return Vectors(self.x[mask], self.document[mask], self.sentence[mask], text)


@torch.no_grad()
def collect(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Mapping[str, Any]],
    site: str = "latents",
    limit: int = 6000,
    batch_size: int = 16,
) -> Vectors:
    """The vectors of the first sentences of documents. Each document is read alone, never a block of several.

    Args:
        model: An SLLM, or for the `latents` also a sentence VAE; load it in float32.
        tokenizer: The model's own.
        documents: Rows with a `text`.
        site: `"latents"`, which the encoder makes of each sentence and the backbone reads; or `"predicted_latents"`,
            which the backbone expects of it and the decoder reads: here what is written can be steered.
        limit: How many sentences.
        batch_size: Documents at a time.

    Raises:
        ValueError: If the site is unknown, the model does not predict, or all sentences are of one document.
    """
    check_site(model, site)
    with evaluation_mode(model):
        sample = take_sample(documents, tokenizer, model.config, limit, batch_size, model.device)
        vectors = encode(model, sample)[0]
        if site == "predicted_latents":
            vectors = predict(model, sample, vectors)[of_sentences(sample)]
    number = torch.arange(len(sample.document)) - torch.searchsorted(sample.document, sample.document)
    text = [str(tokenizer.decode(ids)) for ids in sample.sentences()]
    return Vectors(vectors.flatten(1).float().cpu(), sample.document, number, text)


def of_sentences(sample: Sample) -> torch.Tensor:
    """`(S,)` which of a sample's predictions is of each sentence: a document has one more where all are closed."""
    first = torch.searchsorted(sample.predicted_document, sample.document)
    return first + torch.arange(len(sample.document)) - torch.searchsorted(sample.document, sample.document)


def check_site(model: Any, site: str) -> None:
    """Refuses a site that is unknown, or that a model does not have."""
    if site not in SITES:
        raise ValueError(f"site={site!r} is unknown; choose one of {', '.join(SITES)}.")
    if site == "predicted_latents" and model.config.model_type != "sllm":
        raise ValueError(f"A {model.config.model_type} predicts no latents: choose site='latents'.")


@dataclass(frozen=True)
class Recovered:
    """Nats per token of the text, by what the decoder reads in place of the predicted latents.

    Attributes:
        clean: The predicted latents.
        written: What the autoencoder makes of them.
        mean: Their mean, for all sentences.
        another: Those of another text.
    """

    clean: float
    written: float
    mean: float
    another: float

    @property
    def share(self) -> float:
        """Of what the mean loses, the share that the autoencoder keeps."""
        return (self.mean - self.written) / (self.mean - self.clean)


@torch.no_grad()
def recovered_loss(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Mapping[str, Any]],
    sae: SparseAutoencoder,
    limit: int = 1000,
    batch_size: int = 16,
) -> Recovered:
    """See `Recovered`, for an autoencoder of an SLLM's `predicted_latents`.

    Raises:
        ValueError: If the model does not predict, or the sentences are of fewer than two documents.
    """
    check_site(model, "predicted_latents")
    with evaluation_mode(model):
        sample = take_sample(documents, tokenizer, model.config, limit, batch_size, model.device)
        clean = predict(model, sample, encode(model, sample)[0])
        written = sae.to(clean.device)(clean.flatten(1)).view_as(clean)
        another = clean.roll(len(clean) // 2, 0)
        mean = clean.mean(0).expand_as(clean)
        nats = [
            score_next_sentences(model, sample, given).nats.nanmean().item()
            for given in (clean, written, mean, another)
        ]
    return Recovered(*nats)
