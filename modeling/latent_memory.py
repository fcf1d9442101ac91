"""The memory: how what was said far back reaches what is written now.

The decoder sees its sentence and a window of tokens before it. What lies further back reaches it here: before a state
of the decoder becomes logits, it attends to the latents of all sentences that were closed before its own, and to the
start's, where it finds nothing. They have no positions: a sentence is found from afar as from nearby.

A latent is looked up by what it says and by what its whole sentence says, and the query is made of the state and of
the words that the own sentence has so far. Queries and keys begin with the same map: from the first step on, the
sentences found are those that share words with the one being written.

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
        self,
        states: torch.Tensor,
        said: torch.Tensor,
        sentence: torch.Tensor,
        memory: torch.Tensor,
        memory_sentence: torch.Tensor,
    ) -> torch.Tensor:
        """The states `(batch, Q, width)`, with what they read.

        Args:
            said: `(batch, Q, width)` sum of the embeddings of the tokens that the sentence of each state has so far.
            sentence: `(batch, Q)` number of the sentence that each state writes; the first is 0.
            memory: `(batch, S, num_latents, num_layers, 2 * width)`, see `write`.
            memory_sentence: `(batch, S)` 0 for the start, j for the j-th sentence, -1 for none. So all see the start,
                and none its own sentence.
        """
        memory_sentence = memory_sentence.repeat_interleave(memory.shape[2], 1)[:, None]
        visible = (memory_sentence >= 0) & (memory_sentence <= sentence[:, :, None])  # (batch, Q, S * num_latents)
        for number, layer in enumerate(self.layers):
            states = layer(states, said, memory[..., number, :].flatten(1, 2), visible)
        return states


class MemoryLayer(nn.Module):
    """Attention to the memory, added to the states."""

    def __init__(self, width: int, latent_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(2 * width, width, bias=False)
        self.key_value = nn.Linear(2 * latent_size, 2 * width, bias=False)
        self.read_output = nn.Linear(width, width, bias=False)

    def write(self, latents: torch.Tensor) -> torch.Tensor:
        """Keys and values `(…, num_latents, 2 * width)` of sentences' latents `(…, num_latents, latent_size)`."""
        whole = latents.mean(-2, keepdim=True).expand_as(latents)
        return self.key_value(torch.cat([normalised(latents), normalised(whole)], -1))

    def forward(
        self, states: torch.Tensor, said: torch.Tensor, memory: torch.Tensor, visible: torch.Tensor
    ) -> torch.Tensor:
        """
        Args:
            states, said: `(batch, Q, width)`.
            memory: `(batch, M, 2 * width)`.
            visible: `(batch, Q, M)`; each state sees at least one entry.
        """
        said = normalised(said).to(states.dtype)
        query = self._heads(self.query(torch.cat([normalised(states), said], -1)))  # (batch, heads, Q, size)
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
    """Maps that keep the scale of each of their inputs. Where the widths agree, all inputs of queries and keys begin
    with the same map. The map whose output is added to the states begins at zero."""
    for linear in (layer.query, layer.key_value):
        init.normal_(linear.weight, mean=0.0, std=(linear.in_features // 2) ** -0.5)
    width, latent_size = layer.query.in_features // 2, layer.key_value.in_features // 2
    if width == latent_size:
        one = layer.query.weight[:, :width].repeat(1, 2)
        init.copy_(layer.query.weight, one)
        init.copy_(layer.key_value.weight, torch.cat([one, layer.key_value.weight[width:]]))
    init.zeros_(layer.read_output.weight)
