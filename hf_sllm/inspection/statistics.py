"""What latents tell by themselves: tensors in, figures out. Nothing here knows a model.

A unit is one component of a sentence's latents; there are `num_latents * latent_size` of them.
"""

import math

import torch

# Section 5.2 of arXiv 1509.00519 calls a unit active if the variance of its posterior mean over the data exceeds this.
ACTIVE_VARIANCE = 1e-2

# What a unit's standard deviation may be, beside its size, by rounding in float32 alone.
ROUNDING = 1e-5

# Sentences whose densities under all posteriors exist at once.
CHUNK = 1024


def count_active(variance: torch.Tensor) -> int:
    """How many units of `(units,)` are active: Burda, Grosse and Salakhutdinov 2015, arXiv 1509.00519, section 5.2."""
    return int((variance > ACTIVE_VARIANCE).sum())


def standard_deviation(mean: torch.Tensor) -> torch.Tensor:
    """Of each unit of `(sentences, units)`; zero where a unit varies by no more than rounding."""
    deviation = mean.std(0, correction=0)
    return deviation.where(deviation > ROUNDING * mean.square().mean(0).sqrt(), 0.0)


def spectrum(mean: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of the covariance of `(sentences, units)`, the largest first; at most one for each sentence."""
    return torch.linalg.svdvals(mean - mean.mean(0)).square() / len(mean)


def effective_dimension(eigenvalues: torch.Tensor) -> float:
    """In how many directions latents vary, as the participation ratio of the eigenvalues of their covariance.

    It is n where n directions have equal variance and the others none, and 0 where nothing varies (Gao et al. 2017,
    "A theory of multineuronal dimensionality, dynamics and measurement", bioRxiv 214262). A small sample lowers it.
    """
    square = eigenvalues.square().sum()
    return (eigenvalues.sum().square() / square).item() if square > 0 else 0.0


def kl_per_unit(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL `(units,)` of each unit's Gaussian from the standard normal, in nats, as mean over the sentences.

    Args:
        mean, log_variance: `(sentences, units)`.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean(0)


def mutual_information(
    mean: torch.Tensor, variance: torch.Tensor, generator: torch.Generator, draws: int = 4
) -> float:
    """An estimate in bits of what Gaussian latents tell about which of the sentences they come from.

    The mean of log q(z|x) - log q(z), with z drawn from each sentence's Gaussian and q(z) the mixture of all of them
    (Hoffman and Johnson 2016, "ELBO surgery"). No sentence gives more than log2 of their number, nor do all
    together give more than the entropy of the sample: latents that hold more cannot be told from those that hold this.

    Args:
        mean, variance: `(sentences, units)`; units of variance 0 are left out.
        draws: How many z for each sentence.
    """
    kept = variance.amin(0) > 0
    mean, precision = (mean - mean.mean(0))[:, kept].double(), 1 / variance[:, kept].double()
    scaled = mean * precision
    constant = (mean * scaled - precision.log()).sum(1)
    nats = 0.0
    for index in torch.arange(len(mean)).repeat(draws).split(CHUNK):
        noise = torch.randn(len(index), mean.shape[1], generator=generator, dtype=mean.dtype)
        z = mean[index] + noise / precision[index].sqrt()
        log_density = -0.5 * (z.square() @ precision.T - 2 * z @ scaled.T + constant)  # of each z under each posterior
        log_mixture = log_density.logsumexp(1) - math.log(len(mean))
        nats += (log_density.gather(1, index[:, None])[:, 0] - log_mixture).sum().item()
    return nats / (draws * len(mean)) / math.log(2)
