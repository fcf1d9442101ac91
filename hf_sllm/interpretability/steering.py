"""A feature is turned up or down in what the sentence decoder reads, and the text follows. And: strange vectors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .sparse_autoencoder import SparseAutoencoder


def turned(
    sae: SparseAutoencoder,
    x: torch.Tensor,
    feature: int,
    strength: float,
    unit: float,
    how: str = "add",
) -> torch.Tensor:
    """Vectors `(N, d)` moved along a feature's direction. What the autoencoder does not explain stays in them, so a
    strength of 0 changes nothing.

    Args:
        strength: In units of `unit`, see `typical_strength`.
        how: `"add"`, or `"set"`: the feature then has just this strength.

    Raises:
        ValueError: If `how` is unknown, or there is no such feature.
    """
    if not 0 <= feature < sae.features:
        raise ValueError(f"feature={feature}: this autoencoder has features 0 to {sae.features - 1}.")
    if how not in ("add", "set"):
        raise ValueError(f"how={how!r} is unknown; choose 'add' or 'set'.")
    along = sae.W_dec[feature].to(x)
    amount = torch.full((len(x), 1), strength * unit, dtype=x.dtype, device=x.device)
    if how == "set":
        amount = amount - sae.encode(x)[:, feature, None]
    return x + amount * along


def typical_strength(sae: SparseAutoencoder, x: torch.Tensor, feature: int) -> float:
    """How strongly a feature fires at most, but for one time in a hundred, on vectors `(N, d)`; 0 if it never does."""
    values = sae.encode(x)[:, feature].abs()
    fires = values[values > 0]
    return fires.quantile(0.99).item() if len(fires) else 0.0


@contextmanager
def steer(model: Any, sae: SparseAutoencoder, feature: int, strength: float, unit: float, site: str) -> Iterator[None]:
    """Within it, an SLLM writes with a feature turned in the predicted latents of each sentence.

    Args:
        sae: Fitted on the model's `predicted_latents`.
        strength, unit: See `turned`.
        site: Where the autoencoder was fitted, as its file says.

    Raises:
        ValueError: If it was fitted where the decoder does not read.
    """
    if site != "predicted_latents":
        raise ValueError(
            f"site={site!r}: the decoder reads predicted latents. Fit an autoencoder with site='predicted_latents'."
        )

    def turn(module: torch.nn.Module, arguments: tuple) -> tuple | None:
        latents = arguments[0]
        if strength == 0 or latents is None or not latents.numel():
            return None
        flat = latents.flatten(-2)  # (…, num_latents * latent_size)
        moved = turned(sae, flat.flatten(0, -2), feature, strength, unit)
        return (moved.view_as(latents), *arguments[1:])

    handle = model.base_model.sentence_decoder.register_forward_pre_hook(turn)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def strangeness(sae: SparseAutoencoder, x: torch.Tensor) -> torch.Tensor:
    """`(N,)`, how much of each vector known features cannot build: the share of its squared distance from the centre
    that the autoencoder leaves over. Higher is stranger."""
    left = (x - sae(x)).square().sum(1)
    return left / (x - sae.b_dec).square().sum(1).clamp(min=1e-12)
