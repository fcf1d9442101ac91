"""Inspects a model's latents: what they hold, what of it reaches the text, and what is left under noise."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hf_sllm.evaluation.loop import evaluation_mode, with_bar

from .sample import Sample, take_sample
from .scores import Reading, encode, predict, score_next_sentences, score_reconstruction, summarize
from .statistics import (
    count_active,
    effective_dimension,
    kl_per_unit,
    mutual_information,
    spectrum,
    standard_deviation,
)

# Which latents the decoder reads: a sentence's own, or those predicted of it.
TRUE = "as they are"
DRAWN = "drawn from their Gaussians"
HIDDEN = "hidden (zero)"
OTHER = "of another text"
AFTER_OTHER = "predicted after another text"
START = "predicted after nothing"
NOISY = "with noise"
NOISY_BEFORE = "with noise before the backbone"

# Standard deviations of the noise, in multiples of each unit's own.
NOISE = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Information:
    """What latents tell under noise.

    Attributes:
        noise: Standard deviation of the noise, in multiples of each unit's own.
        bits: Mutual information of sentence and noisy latents, see `mutual_information`.
    """

    noise: float
    bits: float


@dataclass(frozen=True)
class LatentHealth:
    """What was found on a sample of sentences. A unit is one component of a sentence's latents.

    Attributes:
        model_type: `"sentence_vae"` or `"sllm"`.
        documents, sentences, tokens: Size of the sample.
        num_latents, latent_size: Of the model.
        variance: Of each unit's mean over the sentences, latent after latent.
        active_units: See `count_active`.
        spectrum: Eigenvalues of the units' covariance, the largest first.
        effective_dimension: See `effective_dimension`.
        kl: Of each unit, in nats, if the latents are Gaussians: see `kl_per_unit`.
        information: Under noise; Gaussian latents also without any but their own.
        entropy: Bits that tell the sample's sentences apart, which bounds the information.
        reconstruction: Of sentences from their own latents, if the model learned it.
        next_sentence: Prediction of text from predicted latents, if there is a backbone.
    """

    model_type: str
    documents: int
    sentences: int
    tokens: int
    num_latents: int
    latent_size: int
    variance: list[float]
    active_units: int
    spectrum: list[float]
    effective_dimension: float
    kl: list[float] | None
    information: list[Information]
    entropy: float
    reconstruction: list[Reading]
    next_sentence: list[Reading]

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "LatentHealth":
        """Reads what `save` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        information = [Information(**row) for row in values["information"]]
        readings = {
            task: [Reading.from_dict(row) for row in values[task]] for task in ("reconstruction", "next_sentence")
        }
        return cls(**{**values, **readings, "information": information})


@torch.no_grad()
def inspect_latents(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Mapping[str, Any]],
    limit: int = 1000,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> LatentHealth:
    """Inspects the latents of a model.

    Args:
        model: A `SentenceVaeModel` or an `SllmForCausalLM`; load it in float32 for figures that count.
        tokenizer: The model's own.
        documents: Rows with a `text`: a `datasets.Dataset`, or a list of dicts.
        limit: How many sentences to inspect, the documents' first ones.
        batch_size: Documents at a time.
        seed: Of the noise, and of which other text lends its latents.
        progress: Whether to show a progress bar, on standard error.

    Raises:
        ValueError: If the model has no sentence latents, or the sentences are of fewer than two documents.
    """
    check_model(model.config.model_type)
    with evaluation_mode(model):
        sample = take_sample(documents, tokenizer, model.config, limit, batch_size, model.device)
        mean, log_variance = encode(model, sample)
        generator = torch.Generator().manual_seed(seed)
        readings: dict[str, list[Reading]] = {"reconstruction": [], "next_sentence": []}
        runs = list(decoder_inputs(model, sample, mean, log_variance, generator))
        for task, name, noise, given in with_bar(runs, "Inspecting", progress):
            if task == "reconstruction":
                scores = score_reconstruction(model, sample, given, write=name not in (HIDDEN, OTHER))
            else:
                # The model's own forward pass, with nothing replaced, gives the figures to compare with.
                scores = score_next_sentences(model, sample, None if name == TRUE else given)
            readings[task].append(summarize(name, noise, sample, scores))

    units = mean.flatten(1).double().cpu()  # (S, units)
    log_variances = None if log_variance is None else log_variance.flatten(1).double().cpu()
    eigenvalues = spectrum(units)
    variance = units.var(0, correction=0)
    return LatentHealth(
        model_type=model.config.model_type,
        documents=sample.documents,
        sentences=len(sample.document),
        tokens=len(sample.token_ids),
        num_latents=model.config.num_latents,
        latent_size=model.config.latent_size,
        variance=variance.tolist(),
        active_units=count_active(variance),
        spectrum=eigenvalues.tolist(),
        effective_dimension=effective_dimension(eigenvalues),
        kl=None if log_variances is None else kl_per_unit(units, log_variances).tolist(),
        information=list(information_under_noise(units, log_variances, generator)),
        entropy=sample.entropy(),
        **readings,
    )


def check_model(model_type: str) -> None:
    """Refuses a model without sentence latents."""
    if model_type not in ("sentence_vae", "sllm"):
        raise ValueError(
            f"this is a {model_type!r} model, which has no sentence latents to inspect: give a SentenceVaeModel or an "
            "SllmForCausalLM."
        )


def decoder_inputs(
    model: Any,
    sample: Sample,
    mean: torch.Tensor,
    log_variance: torch.Tensor | None,
    generator: torch.Generator,
) -> Iterator[tuple[str, str, float, torch.Tensor]]:
    """What is tried: for each task the names of the latents, their noise and the latents that the decoder gets."""
    drawn = None if log_variance is None else mean + torch.exp(0.5 * log_variance) * normal_like(mean, generator)
    if model.config.model_type == "sentence_vae" or model.config.reconstruction_weight > 0:
        for name, noise, latents in alternatives(mean, sample.document, generator):
            yield "reconstruction", name, noise, latents
        if drawn is not None:
            yield "reconstruction", DRAWN, 0.0, drawn
    if model.config.model_type == "sllm":
        predicted = predict(model, sample, mean)
        for name, noise, latents in alternatives(predicted, sample.predicted_document, generator):
            yield "next_sentence", name, noise, latents
        other = mean[of_other_documents(sample.document, generator).to(mean.device)]
        yield "next_sentence", AFTER_OTHER, 0.0, predict(model, sample, other)
        yield "next_sentence", START, 0.0, predicted[:1].expand_as(predicted)
        if drawn is not None:
            yield "next_sentence", DRAWN, 0.0, predict(model, sample, drawn)
        for noise, latents in with_noise(mean, generator):
            yield "next_sentence", NOISY_BEFORE, noise, predict(model, sample, latents)


def alternatives(
    latents: torch.Tensor, document: torch.Tensor, generator: torch.Generator
) -> Iterator[tuple[str, float, torch.Tensor]]:
    """Latents `(n, num_latents, latent_size)` of some documents `(n,)`, and others in their place."""
    yield TRUE, 0.0, latents
    yield HIDDEN, 0.0, torch.zeros_like(latents)
    yield OTHER, 0.0, latents[of_other_documents(document, generator).to(latents.device)]
    for noise, noisy in with_noise(latents, generator):
        yield NOISY, noise, noisy


def of_other_documents(document: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """For each of the items of documents `0, …, 0, 1, …` `(n,)` the index of a random one of another document."""
    count = torch.bincount(document)
    first, own = (count.cumsum(0) - count)[document], count[document]
    index = (torch.rand(len(document), generator=generator, dtype=torch.double) * (len(document) - own)).long()
    return torch.where(index >= first, index + own, index)


def with_noise(latents: torch.Tensor, generator: torch.Generator) -> Iterator[tuple[float, torch.Tensor]]:
    """Latents with the same noise at each of its scales."""
    deviation = standard_deviation(latents.flatten(1)).view_as(latents[0])
    normal = normal_like(latents, generator)
    for noise in NOISE:
        yield noise, latents + noise * deviation * normal


def normal_like(latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Standard normal noise, the same on every device."""
    return torch.randn(latents.shape, generator=generator).to(latents)


def information_under_noise(
    mean: torch.Tensor, log_variance: torch.Tensor | None, generator: torch.Generator
) -> Iterator[Information]:
    """What latents `(sentences, units)` tell at each scale of noise, their own included."""
    deviation = standard_deviation(mean)
    own = torch.zeros_like(mean) if log_variance is None else log_variance.exp()
    for noise in NOISE if log_variance is None else (0.0, *NOISE):
        yield Information(noise, mutual_information(mean, own + (noise * deviation).square(), generator))


def reading_of(readings: list[Reading], latents: str, noise: float = 0.0) -> Reading | None:
    """The reading of these latents, if there is one."""
    return next((reading for reading in readings if (reading.latents, reading.noise) == (latents, noise)), None)
