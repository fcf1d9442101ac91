"""What latents are trained for beside the text: their noise, their KL term, and telling the next ones ahead."""

import math

import torch
from torch import nn

from .configuration_sentence_vae import SentenceVaeConfig
from .sentence_segmentation import SentenceLayout


def kl_divergence(config: SentenceVaeConfig, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL of the latents' Gaussians from the standard normal, in nats, summed over sentences and units.

    Each unit's is clamped to `kl_free_bits` from below (arXiv 1606.04934, appendix C.8, here unit by unit) and to
    `kl_max_bits` from above: outside, it has no gradient.
    """
    per_unit = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)
    most = None if config.kl_max_bits is None else config.kl_max_bits * math.log(2)
    return per_unit.float().clamp(min=config.kl_free_bits * math.log(2), max=most).sum()


def sample_latents(
    config: SentenceVaeConfig, mean: torch.Tensor, log_variance: torch.Tensor | None, training: bool
) -> torch.Tensor:
    """The latents themselves in evaluation; in training drawn from their Gaussian, and with noise added."""
    latents = mean
    if training and log_variance is not None:
        latents = latents + torch.randn_like(latents) * torch.exp(0.5 * log_variance)
    if training and config.latent_noise > 0:
        latents = latents + config.latent_noise * torch.randn_like(latents)
    return latents


class NextLatentHead(nn.Sequential):
    """From the backbone's state `(…, width)` before a sentence to what it will read of it, `(…, width)`."""

    def __init__(self, width: int):
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def next_latent_loss(
    states: torch.Tensor, inputs: torch.Tensor, layout: SentenceLayout, targets: torch.Tensor, head: nn.Module
) -> torch.Tensor:
    """Squared error of what the head makes of the states, over the variance of the features that were to be told;
    each sentence counts as often as it has tokens that are scored. Only the head gets a gradient.

    Args:
        states: `(C, width)` of the backbone, before each of the C closed sentences.
        inputs: `(C, width)` what it reads of them.
        layout: Of all sentences.
        targets: `(N,)` the tokens themselves; -100 is left out.
    """
    inputs = inputs.detach().float()
    variance = (inputs - inputs.mean(-1, keepdim=True)).pow(2).mean(-1)
    error = (head(states.detach()).float() - inputs).pow(2).mean(-1)
    return (error / variance.clamp(min=1e-8) * scored_tokens(layout, targets)).sum()


def scored_tokens(layout: SentenceLayout, targets: torch.Tensor) -> torch.Tensor:
    """`(C,)` of each closed sentence, how many of its tokens are scored; `targets` `(N,)` are the tokens, or -100."""
    tokens = torch.zeros_like(layout.sentence_row).index_add(0, layout.token_sentence, (targets != -100).long())
    return tokens[layout.sentence_closed]
