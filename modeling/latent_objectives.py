"""What latents are trained for beside the text: their noise, their KL term, telling the next ones ahead, and telling
them from others."""

import math

import torch
import torch.nn.functional as F
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


def contrastive_loss(
    predicted: torch.Tensor, latents: torch.Tensor, layout: SentenceLayout, targets: torch.Tensor, temperature: float
) -> torch.Tensor:
    """InfoNCE: by its prediction each closed sentence is to be found among all of the batch (arXiv 2505.22202, CTX-C;
    arXiv 1807.03748). Each counts as often as it has tokens that are scored. No gradient flows into the latents.

    Sentences of the same words are no mistake for each other: such pairs are left out.

    Args:
        predicted: `(C, num_latents * latent_size)` of the C closed sentences.
        latents: `(C, num_latents, latent_size)`, those of the encoder.
        layout: Of all sentences.
        targets: `(N,)` the tokens themselves; -100 is left out.
        temperature: The cosines are divided by it.
    """
    # In float32: at a temperature of 0.1, what bfloat16 rounds off a cosine is a tenth of a nat.
    foretold, own = (F.normalize(value.flatten(1).float(), dim=1) for value in (predicted, latents.detach()))
    words = words_of_sentences(layout, targets)
    is_same = (words[:, None] == words) & ~torch.eye(len(words), dtype=torch.bool, device=words.device)
    likeness = (foretold @ own.T / temperature).masked_fill(is_same, -torch.inf)  # (C, C)
    cost = F.cross_entropy(likeness, torch.arange(len(words), device=words.device), reduction="none")
    return (cost * scored_tokens(layout, targets)).sum()


def words_of_sentences(layout: SentenceLayout, token_ids: torch.Tensor) -> torch.Tensor:
    """`(C,)` a number for each closed sentence, the same for the same tokens `(N,)`: a polynomial hash of 64 bits."""
    offset = layout.token_offset
    powers = torch.full_like(offset, 6364136223846793005).cumprod(0)  # wraps around; an odd factor keeps all bits
    terms = (token_ids + 101) * powers[offset]
    hashed = torch.zeros_like(layout.sentence_row).index_add(0, layout.token_sentence, terms)
    return hashed[layout.sentence_closed]


def scored_tokens(layout: SentenceLayout, targets: torch.Tensor) -> torch.Tensor:
    """`(C,)` of each closed sentence, how many of its tokens are scored; `targets` `(N,)` are the tokens, or -100."""
    tokens = torch.zeros_like(layout.sentence_row).index_add(0, layout.token_sentence, (targets != -100).long())
    return tokens[layout.sentence_closed]
