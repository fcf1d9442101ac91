"""Sparse autoencoders: a vector as the sum of a few directions out of many, each of which is a feature.

Sources: arXiv 2406.04093 (`topk`, dead features revived), 2412.06410 (`batchtopk`), 2407.14435 (`jumprelu`),
2510.00404 (`abstopk`), 2503.24277 (`afa`).
"""

from typing import Any

import torch
from torch import nn

ACTIVATIONS = ("relu", "jumprelu", "topk", "batchtopk", "abstopk", "afa")
# Those that keep a number of features that is told.
COUNTED = ("topk", "batchtopk", "abstopk")

# How wide the step of `jumprelu` is for its gradient, in units of normalised input; and where its threshold begins.
BANDWIDTH, THRESHOLD = 0.05, 0.01

# How fast the threshold of `batchtopk` follows the smallest value that was kept.
THRESHOLD_RATE = 0.01


class SparseAutoencoder(nn.Module):
    """`x ≈ f W_dec + b_dec`, with features `f = activation((x - b_dec) W_enc + b_enc)`.

    Args:
        width: Of the vectors, `d`.
        features: How many, `m`.
        activation: `"relu"` and `"jumprelu"` keep what is above a threshold, 0 or a learned one; `"topk"` the `k`
            largest of a vector; `"batchtopk"` as many on average over a batch; `"abstopk"` the `k` of the largest
            size, with their sign, so that a feature has two ends; `"afa"` as many as match the vector's norm.
        k: For those that count.

    Raises:
        ValueError: If the activation is unknown, or `k` is missing, out of range or not wanted.
    """

    def __init__(self, width: int, features: int, activation: str = "topk", k: int | None = None):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}.")
        if activation in COUNTED and not (isinstance(k, int) and 0 < k <= features):
            raise ValueError(f"k={k!r}: {activation} needs the number of features to keep, from 1 to {features}.")
        if activation not in COUNTED and k is not None:
            raise ValueError(f"k={k!r} has no meaning for {activation}; leave it out.")
        self.activation, self.k = activation, k or 0
        directions = nn.functional.normalize(torch.randn(features, width), dim=1)
        self.W_dec = nn.Parameter(directions)  # (m, d)
        self.W_enc = nn.Parameter(directions.T.clone())  # (d, m)
        self.b_enc = nn.Parameter(torch.zeros(features))
        self.b_dec = nn.Parameter(torch.zeros(width))
        if activation == "jumprelu":
            self.threshold = nn.Parameter(torch.full((features,), THRESHOLD))
        elif activation == "batchtopk":
            self.register_buffer("threshold", torch.zeros(features))

    @property
    def features(self) -> int:
        return len(self.W_dec)

    def before_activation(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, m)` of vectors `(N, d)`."""
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """The features `(N, m)` of vectors `(N, d)`."""
        return self.activate(self.before_activation(x), x)

    def decode(self, f: torch.Tensor) -> torch.Tensor:
        """The vectors `(N, d)` that features `(N, m)` stand for."""
        return f @ self.W_dec + self.b_dec

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(x))

    def activate(self, u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The features `(N, m)` where `u` is what comes before the activation, of vectors `x`."""
        if self.activation == "relu":
            return u.relu()
        if self.activation == "jumprelu":
            return jump(u, self.threshold)
        if self.activation == "topk":
            return kept(u, u.topk(self.k, dim=1).indices).relu()
        if self.activation == "abstopk":  # no ReLU: the sign says which end of the feature it is
            return kept(u, u.abs().topk(self.k, dim=1).indices)
        if self.activation == "afa":
            return match_norm(u.relu(), self.W_dec.norm(dim=1), (x - self.b_dec).norm(dim=1))
        if not self.training:
            return u * (u > self.threshold)
        values = u.relu().flatten()
        largest = values.topk(self.k * len(u))
        with torch.no_grad():
            self.threshold.lerp_(largest.values[-1].expand_as(self.threshold), THRESHOLD_RATE)
        return torch.zeros_like(values).scatter(0, largest.indices, largest.values).view_as(u)

    @torch.no_grad()
    def fold(self, center: torch.Tensor, matrix: torch.Tensor) -> "SparseAutoencoder":
        """Makes of an autoencoder of `(x - center) @ matrix` one of `x`, with the same features."""
        back = torch.linalg.inv(matrix)
        self.W_enc.copy_(matrix @ self.W_enc)
        self.W_dec.copy_(self.W_dec @ back)
        self.b_dec.copy_(self.b_dec @ back + center)
        return self


def kept(u: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """`u` at these places of each row, and 0 elsewhere."""
    return torch.zeros_like(u).scatter(1, indices, u.gather(1, indices))


def match_norm(values: torch.Tensor, norms: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Of features `(N, m)` the strongest, so many that their norm is nearest to a target `(N,)` (arXiv 2503.24277).

    Args:
        norms: `(m,)` of the features' directions.
    """
    squares, order = (values * norms).square().sort(dim=1, descending=True)
    reached = squares.cumsum(1)
    reached[:, -1] = 1e8  # with a full orthogonal basis all of them would match exactly, and all would be taken
    count = (reached.sqrt() - target[:, None]).abs().argmin(1, keepdim=True) + 1
    is_kept = torch.arange(values.shape[1], device=values.device) < count
    return values * torch.zeros_like(values).scatter(1, order, is_kept.to(values.dtype))


class _Jump(torch.autograd.Function):
    """`u` where it exceeds a threshold; the threshold's gradient is that of a step as wide as `BANDWIDTH`."""

    @staticmethod
    def forward(ctx: Any, u: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(u, threshold)
        return u * (u > threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (gradient,), (u, threshold) = gradients, ctx.saved_tensors
        near = ((u - threshold).abs() < BANDWIDTH / 2).to(u.dtype)
        return gradient * (u > threshold), (-(threshold / BANDWIDTH) * near * gradient).sum(0)


class _Count(torch.autograd.Function):
    """Whether `u` exceeds a threshold, as a number; with a gradient for the threshold alone."""

    @staticmethod
    def forward(ctx: Any, u: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(u, threshold)
        return (u > threshold).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, torch.Tensor]:
        (gradient,), (u, threshold) = gradients, ctx.saved_tensors
        near = ((u - threshold).abs() < BANDWIDTH / 2).to(u.dtype)
        return None, (-near / BANDWIDTH * gradient).sum(0)


jump, count_above = _Jump.apply, _Count.apply
