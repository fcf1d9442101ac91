"""Sparse autoencoders are fitted to vectors that come in batches, and measured on others."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from .sparse_autoencoder import SparseAutoencoder, count_above

# Weight of the loss by which dead features learn what the others leave over (arXiv 2406.04093).
REVIVAL = 1 / 32

# Added to the variances before whitening, as a share of their mean: directions with next to no variance stay small.
WHITENING = 1e-3

# Vectors from which centre, scale and variance are taken.
SAMPLE = 32_768


def fit(
    batches: Iterable[torch.Tensor],
    sample: torch.Tensor,
    steps: int,
    features: int,
    activation: str = "topk",
    k: int | None = None,
    normalize: str = "scale",
    learning_rate: float = 3e-3,
    sparsity: float | None = None,
    dead_after: int | None = None,
    whitening: float = WHITENING,
    revival: float = REVIVAL,
    seed: int = 0,
) -> SparseAutoencoder:
    """A sparse autoencoder of vectors, in the vectors' own units whatever they were normalised by.

    Args:
        batches: `steps` or more batches `(N, d)`, in random order. Only one is in memory at a time.
        sample: `(N, d)` some of the vectors: their scale, centre and variance are taken for those of all.
        steps: Batches to learn from.
        features, activation, k: See `SparseAutoencoder`.
        normalize: `"none"`; `"scale"`, to a mean norm of the square root of d; or `"whiten"`, so that no few
            directions outweigh all others.
        sparsity: Weight of the features' sizes (`relu`), of their number (`jumprelu`) or of the difference of norms
            (`afa`), in units of the vectors' variance; by default 0.2, 0.03 and 1/16.
        dead_after: A feature that fired in none of so many vectors learns from what the others leave over; by default
            200 m / k.
        whitening: See `WHITENING`.
        revival: See `REVIVAL`.
        seed: Of the directions at the beginning.

    Raises:
        ValueError: If there are fewer batches than steps, or `normalize` is unknown or does not fit the activation.
    """
    if activation == "afa" and normalize == "whiten":
        raise ValueError(
            "normalize='whiten' changes the norms that activation='afa' matches; choose 'scale' or 'none'."
        )
    center, matrix = normaliser(sample[:SAMPLE], normalize, whitening)
    sample = (sample[:SAMPLE] - center) @ matrix
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sae = SparseAutoencoder(sample.shape[1], features, activation, k).to(sample)
    sae.b_dec.data.copy_(geometric_median(sample))
    variance = (sample - sample.mean(0)).square().sum(1).mean().item()
    sparsity = {"relu": 0.2, "jumprelu": 0.03, "afa": 1 / 16}.get(activation, 0.0) if sparsity is None else sparsity
    dead_after = 200 * features // (k or 1) if dead_after is None else dead_after
    silent = torch.zeros(features, dtype=torch.long, device=sample.device)
    optimizer = torch.optim.Adam(sae.parameters(), learning_rate)
    warmup = min(100, steps // 10 + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warmup, (steps - step) / max(steps / 5, 1))
    )
    done = 0
    sae.train()
    for batch in islice(batches, steps):
        x = (batch.to(sample) - center) @ matrix
        u = sae.before_activation(x)
        f = sae.activate(u, x)
        error = x - sae.decode(f)
        loss = error.square().sum(1).mean() / variance + sparsity * penalty(sae, u, f, x)
        silent += len(x)
        silent[(f != 0).any(0)] = 0
        loss = loss + revival * revived(sae, u, error.detach(), silent > dead_after)
        optimizer.zero_grad()
        loss.backward()
        remove_radial_gradient(sae)
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
            if activation == "jumprelu":
                sae.threshold.clamp_(min=0)
        done += 1
    if done < steps:
        raise ValueError(f"steps={steps}, but there were only {done} batches; give more vectors, or fewer steps.")
    return sae.eval().fold(center, matrix).requires_grad_(False)


def fit_vectors(
    x: torch.Tensor, steps: int, batch_size: int = 256, seed: int = 0, **settings: Any
) -> SparseAutoencoder:
    """As `fit`, from vectors `(N, d)` that are in memory; read again as often as the steps need. With 0 steps the
    autoencoder is untrained, a control for what training did."""
    batch_size = min(batch_size, len(x))

    def again() -> Iterator[torch.Tensor]:
        draw = torch.Generator().manual_seed(seed)
        while True:
            yield from shuffled([x], draw)[: len(x) // batch_size * batch_size].split(batch_size)

    return fit(again(), x, steps, seed=seed, **settings)


def penalty(sae: SparseAutoencoder, u: torch.Tensor, f: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What keeps features few, where the activation does not count them."""
    if sae.activation == "relu":
        return (f * sae.W_dec.norm(dim=1)).sum(1).mean()
    if sae.activation == "jumprelu":
        return count_above(u.detach(), sae.threshold).sum(1).mean()
    if sae.activation == "afa":
        return (f.norm(dim=1) - (x - sae.b_dec).norm(dim=1)).square().mean()
    return u.new_zeros(())


def revived(sae: SparseAutoencoder, u: torch.Tensor, error: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
    """How badly the dead features that come nearest to firing explain the error `(N, d)` of the others."""
    count = min(u.shape[1], max(sae.W_dec.shape[1] // 2, 1), int(dead.sum()))
    if count == 0:
        return u.new_zeros(())
    of_dead, directions = u[:, dead], sae.W_dec[dead]
    size = of_dead.abs() if sae.activation == "abstopk" else of_dead
    near = size.topk(count, dim=1).indices
    f = torch.zeros_like(of_dead).scatter(1, near, of_dead.gather(1, near))
    f = f if sae.activation == "abstopk" else f.relu()
    return (error - f @ directions).square().sum() / error.square().sum().clamp(min=1e-12)


@torch.no_grad()
def remove_radial_gradient(sae: SparseAutoencoder) -> None:
    """Directions keep norm 1, so what would only lengthen them is taken from their gradient."""
    gradient = sae.W_dec.grad
    if gradient is not None:
        gradient -= (gradient * sae.W_dec).sum(1, keepdim=True) * sae.W_dec


def normaliser(sample: torch.Tensor, normalize: str, whitening: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A centre `(d,)` and a matrix `(d, d)`: `(x - centre) @ matrix` is normalised."""
    width = sample.shape[1]
    if normalize == "none":
        return sample.new_zeros(width), torch.eye(width).to(sample)
    scale = math.sqrt(width) / sample.norm(dim=1).mean().clamp(min=1e-12)
    if normalize == "scale":
        return sample.new_zeros(width), torch.eye(width).to(sample) * scale
    if normalize != "whiten":
        raise ValueError(f"normalize={normalize!r} is unknown; choose 'none', 'scale' or 'whiten'.")
    values, vectors = torch.linalg.eigh(torch.cov((sample * scale).double().T))
    matrix = vectors / (values.clamp(min=0) + whitening).sqrt()
    return sample.mean(0), (matrix * scale.double()).to(sample)


def geometric_median(x: torch.Tensor, tolerance: float = 1e-5, iterations: int = 200) -> torch.Tensor:
    """`(d,)`, the point with the least sum of distances to `(N, d)` points, by Weiszfeld's iteration."""
    point = x.mean(0)
    for _ in range(iterations):
        weight = 1 / (x - point).norm(dim=1).clamp(min=1e-8)
        following = weight @ x / weight.sum()
        moved, point = (following - point).norm(), following
        if moved < tolerance:
            break
    return point


@dataclass(frozen=True)
class Measured:
    """Of an autoencoder on vectors that it was not fitted to.

    Attributes:
        l0: Features that fire for a vector, on average.
        fvu: Share of the variance that is left unexplained, over all vectors at once.
        dead: Share of the features that never fire.
        dense: Share that fire for more than a tenth of the vectors.
        shrinkage: 1 where what is put together is as large as it should be, less where it is smaller.
        effective_dimension: Of the vectors: how many directions of equal variance would be as spread (participation
            ratio). With few, features are parts of a few directions rather than directions of their own.
        density: `(m,)` share of the vectors for which each fires.
    """

    l0: float
    fvu: float
    dead: float
    dense: float
    shrinkage: float
    effective_dimension: float
    density: torch.Tensor


@torch.no_grad()
def measure(sae: SparseAutoencoder, x: torch.Tensor) -> Measured:
    """See `Measured`; of vectors `(N, d)`."""
    x = x.float()
    f = torch.cat([sae.encode(part) for part in x.split(4096)])
    written = sae.decode(f)
    density = (f != 0).float().mean(0)
    variance = torch.linalg.eigvalsh(torch.cov(x.double().T)).clamp(min=0)
    return Measured(
        l0=(f != 0).sum(1).float().mean().item(),
        fvu=((x - written).square().sum() / (x - x.mean(0)).square().sum()).item(),
        dead=(density == 0).float().mean().item(),
        dense=(density > 0.1).float().mean().item(),
        shrinkage=(written.square().sum() / (x * written).sum()).item(),
        effective_dimension=(variance.sum() ** 2 / variance.square().sum()).item(),
        density=density,
    )


class VectorBuffer:
    """Mixes vectors of many documents before they become batches (FAST, arXiv 2506.07691): it is filled, shuffled and
    emptied down to a share of it, until all vectors were given once.

    Args:
        capacity: Vectors in memory.
        batch_size: Of what is given.
        mix: Share that stays to be mixed with what comes next.
        seed: Of the shuffles.
    """

    def __init__(self, capacity: int, batch_size: int, mix: float = 0.5, seed: int = 0):
        if not 0 < batch_size <= capacity * (1 - mix):
            raise ValueError(f"batch_size={batch_size} must lie between 1 and {capacity * (1 - mix):.0f}.")
        self.capacity, self.batch_size, self.mix, self.seed = capacity, batch_size, mix, seed

    def batches(self, documents: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Batches of the vectors `(n, d)` of documents; the last one may be smaller."""
        draw = torch.Generator().manual_seed(self.seed)
        held: list[torch.Tensor] = []
        count = 0
        for vectors in documents:
            held.append(vectors)
            count += len(vectors)
            if count >= self.capacity:
                mixed = shuffled(held, draw)
                given = (count - int(self.mix * self.capacity)) // self.batch_size * self.batch_size
                yield from mixed[:given].split(self.batch_size)
                held, count = [mixed[given:].clone()], count - given
        if count:
            yield from shuffled(held, draw).split(self.batch_size)


def shuffled(parts: list[torch.Tensor], draw: torch.Generator) -> torch.Tensor:
    """All of these, in random order."""
    whole = torch.cat(parts)
    return whole[torch.randperm(len(whole), generator=draw)]
