"""The network that predictors of latents share: from noisy latents of one sentence, the noise's level, and the
backbone's state before the sentence, to a field of the latents' shape."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .latent_memory import normalised

TIME_FEATURES = 128


class LatentDenoiser(nn.Module):
    """A transformer over the latents of one sentence, each of which sees all others.

    What conditions it, the backbone's state and the level of noise, scales and shifts what enters each layer (adaptive
    layer norm, arXiv 2212.09748, as in the two-tower model of arXiv 2412.08821). Its output begins at zero.

    Args:
        shape: Of the latents, `(num_latents, latent_size)`.
        width: Of the backbone's states and of the layers.
        num_layers: Of the transformer.
    """

    def __init__(self, shape: tuple[int, int], width: int, num_layers: int):
        super().__init__()
        num_latents, latent_size = shape
        self.latent_in = nn.Linear(latent_size, width)
        self.slots = nn.Embedding(num_latents, width)
        self.state_in = nn.Linear(width, width)
        # What takes the state's place where nothing is known.
        self.nothing = nn.Embedding(1, width)
        self.time_in = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(DenoiserLayer(width) for _ in range(num_layers))
        self.output_scale = nn.Linear(width, 2 * width)
        self.latent_out = nn.Linear(width, latent_size)

    def forward(
        self, noisy: torch.Tensor, time: torch.Tensor, states: torch.Tensor, known: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Args:
            noisy: `(N, num_latents, latent_size)`, standard latents with noise.
            time: `(N,)` from 0, no noise, to 1, nothing but noise.
            states: `(N, width)` of the backbone before each sentence.
            known: `(N,)` where it is false, the state is hidden; by default all are known.

        Returns:
            `(N, num_latents, latent_size)`.
        """
        dtype = self.latent_in.weight.dtype
        state = self.state_in(normalised(states.to(dtype)))
        if known is not None:
            state = torch.where(known[:, None], state, self.nothing.weight)
        condition = F.silu(state + self.time_in(time_features(time).to(dtype)))  # (N, width)
        hidden = self.latent_in(noisy.to(dtype)) + self.slots.weight
        for layer in self.layers:
            hidden = layer(hidden, condition)
        scale, shift = self.output_scale(condition)[:, None].chunk(2, -1)
        return self.latent_out(normalised(hidden) * (1 + scale) + shift).float()


class DenoiserLayer(nn.Module):
    """Attention among the latents of a sentence and an MLP; how each acts is told by the condition, at first not at
    all."""

    def __init__(self, width: int):
        super().__init__()
        self.num_heads = next(heads for heads in (8, 4, 2, 1) if width % heads == 0)
        self.modulation = nn.Linear(width, 6 * width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """`(N, num_latents, width)`, by the condition `(N, width)`."""
        scale, shift, gate, mlp_scale, mlp_shift, mlp_gate = self.modulation(condition)[:, None].chunk(6, -1)
        mixed = self.query_key_value(normalised(hidden) * (1 + scale) + shift)
        heads = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in mixed.chunk(3, -1))
        read = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        hidden = hidden + gate * self.attention_out(read)
        return hidden + mlp_gate * self.mlp(normalised(hidden) * (1 + mlp_scale) + mlp_shift)


def time_features(time: torch.Tensor) -> torch.Tensor:
    """`(N, TIME_FEATURES)` sines and cosines of times from 0 to 1."""
    half = TIME_FEATURES // 2
    frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, device=time.device))
    angles = 1000.0 * time.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


@torch.no_grad()
def init_denoiser(denoiser: LatentDenoiser) -> None:
    """Maps that keep the scale of their inputs; but each layer does nothing at first, and the output is zero."""
    for module in denoiser.modules():
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=module.in_features**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
    for linear in (denoiser.latent_out, denoiser.output_scale, *(layer.modulation for layer in denoiser.layers)):
        init.zeros_(linear.weight)
