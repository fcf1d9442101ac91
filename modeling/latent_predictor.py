"""How the latents of the next sentence follow from the backbone's state before it, where a linear map is not enough.

A text can go on in several ways. A map gives one answer, which is best where it is the mean of all: a sentence that
nobody would write. A sampled predictor gives one of the ways, another for another noise: `flow` (flow matching, as in
LaDiR, arXiv 2510.04573) and `diffusion` (Large Concept Models, arXiv 2412.08821). `mse` is the latter's baseline: the
mean, told by the same network.

In training the decoder of such a model reads the latents that the encoder made, and the predictor learns these. So one
decoder reads latents, whether encoded or predicted.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from .configuration_sllm import SllmConfig
from .latent_denoiser import LatentDenoiser
from .latent_normaliser import LatentNormaliser

# Noise levels in the training of `diffusion`.
NOISE_LEVELS = 100
# With guidance: how far the estimate's spread is brought back to that of the conditional one (arXiv 2305.08891), and
# what the estimated noise is divided by (arXiv 2308.15321). Both as in arXiv 2412.08821.
GUIDANCE_RESCALE = 0.7
EPSILON_SCALE = 1.00045


# What a config says of sampling, and `generate` may say otherwise.
SETTINGS = ("steps", "guidance_scale", "noise_scale")


class LatentSampling(NamedTuple):
    """How latents are sampled.

    Attributes:
        steps: More of them follow the distribution better, more slowly.
        guidance_scale: Above 1, what the state says counts for more than it does.
        noise_scale: Of the noise at the beginning; below 1 the samples keep to what is likely.
        futures: So many samples, one after the other, are of one text.
        diversity: How strongly these push each other apart on their way, where latents follow a flow.
    """

    steps: int
    guidance_scale: float
    noise_scale: float
    futures: int = 1
    diversity: float = 0.0

    @classmethod
    def of(cls, settings: dict[str, Any], **changes: Any) -> "LatentSampling":
        """As a config's `latent_predictor` says, but for those of these changes that are not `None`."""
        told = {name: value for name, value in changes.items() if value is not None}
        return cls(**{**{name: settings[name] for name in SETTINGS}, **told})


class LatentPredictor(nn.Module):
    """What predictors share: the scale of latents, and a network.

    Args:
        config: Its `latent_predictor` says which and how large.
        width: Of the backbone's states.
    """

    def __init__(self, config: SllmConfig, width: int):
        super().__init__()
        shape = (config.num_latents, config.latent_size)
        self.settings = config.latent_predictor
        self.normaliser = LatentNormaliser(shape)
        self.denoiser = LatentDenoiser(shape, width, config.latent_predictor["num_layers"])

    def loss(self, states: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """`(C,)` what it costs that these states `(C, width)` were followed by such latents `(C, num_latents,
        latent_size)`. In training the normaliser takes them in."""
        latents = latents.detach()
        if self.training:
            self.normaliser.observe(latents)
        known = torch.rand(len(states), device=states.device) >= self.settings["unconditional"]
        return self.standard_loss(states, self.normaliser.normalise(latents), known).flatten(1).mean(1)

    def sample(self, states: torch.Tensor, noise: torch.Tensor, sampling: LatentSampling) -> torch.Tensor:
        """The latents `(N, num_latents, latent_size)` that follow on states `(N, width)`, by noise of their shape."""
        return self.normaliser.restore(self.standard_sample(states, noise * sampling.noise_scale, sampling))

    def standard_loss(self, states: torch.Tensor, clean: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """The squared errors on standard latents, of their shape; where `known` is false, the state is hidden."""
        raise NotImplementedError

    def standard_sample(self, states: torch.Tensor, noise: torch.Tensor, sampling: LatentSampling) -> torch.Tensor:
        """Standard latents."""
        raise NotImplementedError

    def estimates(self, states: torch.Tensor, guidance_scale: float) -> Callable:
        """The denoiser as a function of noisy latents and a time: what it says by these states and, if guidance needs
        it, without them."""
        hidden = torch.zeros(len(states), dtype=torch.bool, device=states.device)

        def estimate(noisy: torch.Tensor, time: float) -> tuple[torch.Tensor, torch.Tensor | None]:
            times = torch.full((len(noisy),), time, device=noisy.device)
            free = None if guidance_scale == 1 else self.denoiser(noisy, times, states, hidden)
            return self.denoiser(noisy, times, states), free

        return estimate


class MsePredictor(LatentPredictor):
    """The mean of what may follow. Guidance, steps and noise have no meaning for it."""

    def standard_loss(self, states: torch.Tensor, clean: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        return (self.mean(states, clean, known) - clean) ** 2

    def standard_sample(self, states: torch.Tensor, noise: torch.Tensor, sampling: LatentSampling) -> torch.Tensor:
        return self.mean(states, noise)

    def mean(self, states: torch.Tensor, like: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
        return self.denoiser(torch.zeros_like(like), torch.ones(len(like), device=like.device), states, known)


class FlowPredictor(LatentPredictor):
    """Noise becomes latents along straight lines; the network tells the velocity (arXiv 2210.02747)."""

    def standard_loss(self, states: torch.Tensor, clean: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        time, noise = torch.rand(len(clean), device=clean.device), torch.randn_like(clean)
        noisy = torch.lerp(clean, noise, time[:, None, None])
        return (self.denoiser(noisy, time, states, known) - (noise - clean)) ** 2

    def standard_sample(self, states: torch.Tensor, noise: torch.Tensor, sampling: LatentSampling) -> torch.Tensor:
        velocity = self.estimates(states, sampling.guidance_scale)
        return follow_flow(velocity, noise, *(getattr(sampling, name) for name in FLOW_SETTINGS))


class DiffusionPredictor(LatentPredictor):
    """Noise becomes latents as a diffusion is undone; the network tells the latents without noise."""

    def __init__(self, config: SllmConfig, width: int):
        super().__init__(config, width)
        self.signal = signal_levels(self.settings["schedule"]).tolist()

    def standard_loss(self, states: torch.Tensor, clean: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        level = torch.randint(NOISE_LEVELS, (len(clean),), device=clean.device)
        signal = torch.tensor(self.signal, device=clean.device)[level][:, None, None]
        noisy = signal * clean + (1 - signal**2).sqrt() * torch.randn_like(clean)
        return (self.denoiser(noisy, (level + 1) / NOISE_LEVELS, states, known) - clean) ** 2

    def standard_sample(self, states: torch.Tensor, noise: torch.Tensor, sampling: LatentSampling) -> torch.Tensor:
        estimate = self.estimates(states, sampling.guidance_scale)
        return undo_diffusion(estimate, noise, self.signal, sampling.steps, sampling.guidance_scale)


LATENT_PREDICTORS = {"mse": MsePredictor, "flow": FlowPredictor, "diffusion": DiffusionPredictor}


# What an estimate is: of noisy latents and a time, the conditional one and, with guidance, the free one.
Estimate = Callable[[torch.Tensor, float], tuple[torch.Tensor, torch.Tensor | None]]


# Of a `LatentSampling`, what `follow_flow` needs.
FLOW_SETTINGS = ("steps", "guidance_scale", "futures", "diversity")


def follow_flow(
    velocity: Estimate,
    noise: torch.Tensor,
    steps: int,
    guidance_scale: float = 1.0,
    futures: int = 1,
    diversity: float = 0.0,
) -> torch.Tensor:
    """Euler's steps from noise, at time 1, to latents, at time 0. With `diversity`, each step also pushes the
    `futures` of a text apart, at first by so many times its own length, and at the end not at all."""
    latents = noise
    for step in range(steps):
        time = 1 - step / steps
        conditional, free = velocity(latents, time)
        along = conditional if free is None else torch.lerp(free, conditional, guidance_scale)
        latents = latents - along / steps
        if diversity > 0:
            of_text = (-1, futures)
            push = repulsion(latents.flatten(1).unflatten(0, of_text))  # (texts, futures, units)
            taken = along.flatten(1).unflatten(0, of_text).norm(dim=(1, 2), keepdim=True) / steps
            push = push / push.norm(dim=(1, 2), keepdim=True).clamp(min=1e-8) * taken
            latents = latents + diversity * time * push.view_as(latents)
    return latents


def repulsion(points: torch.Tensor, bandwidth: float = 2.0) -> torch.Tensor:
    """What pushes `(…, N, D)` points apart, up to its length: the gradient of the sum over pairs of `r² exp(-r² / s²)`
    (arXiv 2510.04573).

    Points further apart than s attract each other. So s is twice the median distance, and not the median itself as
    published: then half of the pairs would, and of two points none would move.
    """
    apart = points[..., :, None, :] - points[..., None, :, :]  # (…, N, N, D)
    squares = apart.square().sum(-1)
    pairs = ~torch.eye(points.shape[-2], dtype=torch.bool, device=points.device)
    if not pairs.any():
        return torch.zeros_like(points)
    scale = bandwidth**2 * squares[..., pairs].median(-1).values[..., None, None].clamp(min=1e-12)
    return (2 * (1 - squares / scale) * torch.exp(-squares / scale))[..., None].mul(apart).sum(-2)


def undo_diffusion(
    clean: Estimate,
    noise: torch.Tensor,
    signal: list[float],
    steps: int,
    guidance_scale: float = 1.0,
    rescale: float = GUIDANCE_RESCALE,
    epsilon_scale: float = EPSILON_SCALE,
) -> torch.Tensor:
    """DDIM without added noise (arXiv 2010.02502), from the noisiest of the levels on.

    Args:
        signal: Of each level of noise, the factor of the clean latents, see `signal_levels`.
        rescale, epsilon_scale: See `GUIDANCE_RESCALE` and `EPSILON_SCALE`.
    """
    latents, levels = noise, len(signal)
    trailing = [round(levels * (1 - step / steps)) - 1 for step in range(steps)]
    trailing = sorted({level for level in trailing if level >= 0}, reverse=True)
    for level, following in zip(trailing, [*trailing[1:], None], strict=True):
        kept, spread = signal[level], math.sqrt(1 - signal[level] ** 2)
        conditional, free = clean(latents, (level + 1) / levels)
        estimate, error = conditional, (latents - kept * conditional) / spread
        if free is not None and kept > 0:  # where no signal is left, the noise says nothing of the estimate
            free_error = (latents - kept * free) / spread
            guided = torch.lerp(free_error, error, guidance_scale)
            own, its = (value.flatten(1).std(1).clamp(min=1e-8)[:, None, None] for value in (error, guided))
            error = guided * (rescale * own / its + 1 - rescale)
            estimate = (latents - spread * error) / kept
        if following is None:
            return estimate
        latents = signal[following] * estimate + math.sqrt(1 - signal[following] ** 2) * error / epsilon_scale
    return latents


def signal_levels(schedule: str) -> torch.Tensor:
    """`(NOISE_LEVELS,)` factors of the clean latents, from hardly any noise to nothing else: the last one is 0, or
    else a text would begin from what training never showed (arXiv 2305.08891)."""
    level = (torch.arange(NOISE_LEVELS, dtype=torch.float64) + 1) / NOISE_LEVELS
    if schedule == "cosine":
        kept = torch.cos((level + 0.008) / 1.008 * math.pi / 2) ** 2
        start = torch.cat([torch.tensor([math.cos(0.008 / 1.008 * math.pi / 2) ** 2], dtype=torch.float64), kept[:-1]])
        kept = torch.cumprod(1 - (1 - kept / start).clamp(max=0.999), 0)
    elif schedule == "quadratic":
        roots = torch.linspace(0.02**0.5, 0.022**0.5, NOISE_LEVELS, dtype=torch.float64)
        kept = torch.cumprod(1 - roots**2, 0)
    else:
        odds = torch.logit(level.clamp(1e-6, 1 - 1e-6))
        kept = torch.sigmoid(-1.0 - 1.5 * odds)
    signal = kept.sqrt()
    return (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])


def sentence_noise(seeds: list[int], sentences: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """`(batch, J, *shape)` normal noise for sentences of these numbers, `(batch, J)`; each row has its seed.

    It depends on the seed and on the sentence's number alone: so a text is the same in a batch and alone, with a cache
    and without, and when the cache is made again.
    """
    drawn: dict[tuple[int, int], torch.Tensor] = {}
    for row, numbers in zip(seeds, sentences.tolist(), strict=True):
        for number in numbers:
            if (row, number) not in drawn:
                seed = hashlib.blake2b(f"{row} {number}".encode(), digest_size=4).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(seed, "big"))
                drawn[row, number] = torch.randn(shape, generator=generator)
    rows = [
        torch.stack([drawn[row, number] for number in numbers]) if numbers else torch.empty(0, *shape)
        for row, numbers in zip(seeds, sentences.tolist(), strict=True)
    ]
    return torch.stack(rows).to(sentences.device)
