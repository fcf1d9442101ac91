"""Which latents the decoder is given: a sentence's own, none, those of another text, or noisy ones."""

from collections.abc import Iterator
from typing import Any

import torch

from .sample import Sample
from .scores import predict
from .statistics import standard_deviation

# Which latents the decoder reads: a sentence's own, or those predicted of it.
TRUE = "as they are"
DRAWN = "drawn from their Gaussians"
HIDDEN = "hidden (zero)"
OTHER = "of another text"
AFTER_OTHER = "predicted after another text"
START = "predicted after nothing"
OTHER_MEMORY = "and memory of another text"
NOISY = "with noise"
NOISY_BEFORE = "with noise before the backbone"

# Standard deviations of the noise, in multiples of each unit's own.
NOISE = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)


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
        if model.model.memory is not None:
            lent = predicted[of_other_documents(sample.predicted_document, generator).to(predicted.device)]
            yield "next_sentence", OTHER_MEMORY, 0.0, lent
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
