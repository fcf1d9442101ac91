"""The memory: how what was said far back reaches what is written now.

The decoder sees its sentence and a window of tokens before it. What lies further back reaches it here: before a state
of the decoder becomes logits, it attends to the latents of all sentences that were closed before its own, and to the
start's, where it finds nothing. They have no positions: a sentence is found from afar as from nearby.

A layer ends in a map that begins at zero: a model to which a memory is added begins as it was.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_sllm import SllmConfig


class LatentMemory(nn.Module):
    """Layers by which states read the latents of earlier sentences.

    Args:
        config: Its `memory` says how many layers and heads there are.
        width: Of the states.

    Raises:
        ValueError: If the heads cannot share the width.
    """

    def __init__(self, config: SllmConfig, width: int):
        super().__init__()
        num_heads = config.memory["num_heads"] or getattr(config.sentence_decoder_config, "num_attention_heads", 1)
        if width % num_heads:
            raise ValueError(f"`memory.num_heads` is {num_heads}: it must divide the model's width, {width}.")
        self.layers = nn.ModuleList(
            MemoryLayer(width, config.latent_size, num_heads) for _ in range(config.memory["num_layers"])
        )

    def write(self, latents: torch.Tensor) -> torch.Tensor:
        """What is kept of sentences: keys and values `(batch, S, num_latents, num_layers, 2 * width)`, from their
        latents `(batch, S, num_latents, latent_size)`."""
        return torch.stack([layer.write(latents) for layer in self.layers], 3)

    def forward(
        self, states: torch.Tensor, sentence: torch.Tensor, memory: torch.Tensor, memory_sentence: torch.Tensor
    ) -> torch.Tensor:
        """The states `(batch, Q, width)`, with what they read.

        Args:
            sentence: `(batch, Q)` number of the sentence that each state writes; the first is 0.
            memory: `(batch, S, num_latents, num_layers, 2 * width)`, see `write`.
            memory_sentence: `(batch, S)` 0 for the start, j for the j-th sentence, -1 for none. So all see the start,
                and none its own sentence.
        """
        memory_sentence = memory_sentence.repeat_interleave(memory.shape[2], 1)[:, None]
        visible = (memory_sentence >= 0) & (memory_sentence <= sentence[:, :, None])  # (batch, Q, S * num_latents)
        for number, layer in enumerate(self.layers):
            states = layer(states, memory[..., number, :].flatten(1, 2), visible)
        return states


class MemoryLayer(nn.Module):
    """Attention to the memory, added to the states."""

    def __init__(self, width: int, latent_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(latent_size, 2 * width, bias=False)
        self.read_output = nn.Linear(width, width, bias=False)

    def write(self, latents: torch.Tensor) -> torch.Tensor:
        """Keys and values `(…, 2 * width)` of latents `(…, latent_size)`."""
        return self.key_value(normalised(latents))

    def forward(self, states: torch.Tensor, memory: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """
        Args:
            states: `(batch, Q, width)`.
            memory: `(batch, M, 2 * width)`.
            visible: `(batch, Q, M)`; each state sees at least one entry.
        """
        query = self._heads(self.query(normalised(states)))  # (batch, heads, Q, size)
        # A cache may have been written under another autocast.
        key, value = (self._heads(part.to(query.dtype)) for part in memory.chunk(2, -1))
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=visible[:, None])
        return states + self.read_output(read.transpose(1, 2).flatten(2))

    def _heads(self, values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def normalised(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors of unit mean square. The linear map that reads them has the scales that a norm would learn."""
    return F.rms_norm(vectors, vectors.shape[-1:])


@torch.no_grad()
def init_memory_layer(layer: MemoryLayer) -> None:
    """Maps that keep the scale of what they get; the one whose output is added to the states begins at zero."""
    for linear in (layer.query, layer.key_value):
        init.normal_(linear.weight, mean=0.0, std=linear.in_features**-0.5)
    init.zeros_(layer.read_output.weight)
