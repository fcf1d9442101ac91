"""Inspects a model's latents: what they hold, what of it reaches the text, and what is left under noise."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hf_sllm.evaluation.loop import evaluation_mode, with_bar
from hf_sllm.evaluation.memory import changed_memory, of_another_text

from .latents import HIDDEN, NOISE, OTHER, OTHER_MEMORY, TRUE, decoder_inputs
from .results import Information, LatentHealth
from .sample import take_sample
from .scores import Reading, encode, score_next_sentences, score_reconstruction, summarize
from .statistics import (
    count_active,
    effective_dimension,
    kl_per_unit,
    mutual_information,
    spectrum,
    standard_deviation,
)


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
                with changed_memory(model, of_another_text) if name == OTHER_MEMORY else nullcontext():
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


def information_under_noise(
    mean: torch.Tensor, log_variance: torch.Tensor | None, generator: torch.Generator
) -> Iterator[Information]:
    """What latents `(sentences, units)` tell at each scale of noise, their own included."""
    deviation = standard_deviation(mean)
    own = torch.zeros_like(mean) if log_variance is None else log_variance.exp()
    for noise in NOISE if log_variance is None else (0.0, *NOISE):
        yield Information(noise, mutual_information(mean, own + (noise * deviation).square(), generator))
