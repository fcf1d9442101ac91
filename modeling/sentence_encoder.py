"""Where a sentence becomes latents (SentenceVAE, arXiv 2408.00655, section 3.1)."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel

from .configuration_sentence_vae import SentenceVaeConfig
from .sentence_segmentation import ranks
from .stream_attention import run_packed

# So many tokens a prefill encodes at once: enough to be fast, and few beside what it keeps of a long text.
TOKENS_AT_ONCE = 4096


class SentenceEncoder(nn.Module):
    """Turns each sentence into `num_latents` latents; its transformer sees the sentence in both directions.

    Args:
        token_width: Width of the token embeddings it gets; by default it owns them.
    """

    def __init__(self, config: SentenceVaeConfig, token_width: int | None = None):
        super().__init__()
        self.config = config
        self.packed: bool | None = None
        self.model = AutoModel.from_config(config.sentence_encoder_config)
        self._no_split_modules = self.model._no_split_modules  # a model collects its children's
        width = self.model.get_input_embeddings().embedding_dim
        if token_width is not None:
            self.model.set_input_embeddings(None)
        self.embed_projection = project(token_width, width)
        if config.pooling == "sum":
            self.latent_norm = nn.LayerNorm(width)
        elif config.pooling == "parts":
            self.state_gate = nn.Parameter(torch.zeros(width))
        else:
            self.latent_queries = nn.Embedding(config.num_latents, width)
        # With a KL term a latent is a Gaussian: mean and log-variance.
        self.latent_head = nn.Linear(width, config.latent_size * (2 if config.kl_weight > 0 else 1))

    def forward(self, token_embeds: torch.Tensor, sentence: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            token_embeds: `(N, token_width)`.
            sentence: `(N,)` the sentence of each token, `0..S-1` in order.

        Returns:
            Mean of the latents, `(S, num_latents, latent_size)`, and their log-variance if the config has a KL term.
        """
        token_embeds = self.embed_projection(token_embeds)
        pool = {"sum": self._sum, "parts": self._parts, "queries": self._query}[self.config.pooling]
        pooled = pool(token_embeds, sentence)  # (S, num_latents, width)
        mean, *log_variance = self.latent_head(pooled).split(self.config.latent_size, dim=-1)
        return mean, (log_variance[0] if log_variance else None)

    def _query(self, token_embeds: torch.Tensor, sentence: torch.Tensor) -> torch.Tensor:
        """The transformer's states at the queries, which stand before their sentence: `(S, num_latents, width)`."""
        count, device = self.config.num_latents, sentence.device
        sizes = torch.bincount(sentence) + count
        first = sizes.cumsum(0) - sizes  # (S,)
        piece = torch.repeat_interleave(sizes)  # (N + S * num_latents,)
        token_slot = torch.arange(len(sentence), device=device) + count * (sentence + 1)
        query_slot = first[:, None] + torch.arange(count, device=device)  # (S, num_latents)
        queries = all_rows(self.latent_queries, device).to(token_embeds.dtype).repeat(len(sizes), 1)
        inputs_embeds = token_embeds.new_zeros(len(piece), token_embeds.shape[-1])
        inputs_embeds = inputs_embeds.index_copy(0, token_slot, token_embeds)
        inputs_embeds = inputs_embeds.index_copy(0, query_slot.flatten(), queries)
        return self._run(inputs_embeds, piece)[query_slot]

    def _sum(self, token_embeds: torch.Tensor, sentence: torch.Tensor) -> torch.Tensor:
        """The normalised sum of each sentence's states, `(S, 1, width)`."""
        states = self._run(token_embeds, sentence)
        total = states.new_zeros(int(sentence[-1]) + 1, states.shape[-1]).index_add(0, sentence, states)
        return self.latent_norm(total)[:, None]

    def _parts(self, token_embeds: torch.Tensor, sentence: torch.Tensor) -> torch.Tensor:
        """The means of equal parts of each sentence, `(S, num_latents, width)`, zero where it has fewer tokens than
        parts. What is averaged are the embeddings, to which the states are added: a mean says from the first step on
        which words there were, and the transformer learns to say more."""
        count, sizes = self.config.num_latents, torch.bincount(sentence)
        part = sentence * count + ranks(sentence) * count // sizes[sentence]
        width = token_embeds.shape[-1:]
        states = F.rms_norm(token_embeds, width) + self.state_gate * self._run(token_embeds, sentence)
        total = states.new_zeros(len(sizes) * count, *width).index_add(0, part, states)
        return F.rms_norm(total, width).view(len(sizes), count, *width)  # a sum is a mean up to its length

    def _run(self, inputs_embeds: torch.Tensor, piece: torch.Tensor) -> torch.Tensor:
        return run_packed(self.model, inputs_embeds, piece, ranks(piece), causal=False, packed=self.packed)[0]


def encode_in_parts(
    encoder: SentenceEncoder, embed: Callable, token_index: torch.Tensor, sentence: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As the encoder's own forward pass, in one call for each few thousand tokens, so that memory does not grow with
    the text. For inference with a cache, where no other process waits for these calls.

    Args:
        embed: From indices of tokens, `(K,)`, to their embeddings, `(K, width)`.
        token_index, sentence: `(N,)` index and sentence of each token; at least one.
    """
    lengths = torch.bincount(sentence)
    part = (lengths.cumsum(0) - lengths) // TOKENS_AT_ONCE
    sizes = part[sentence].unique_consecutive(return_counts=True)[1].tolist()
    parts = zip(token_index.split(sizes), sentence.split(sizes), strict=True)
    means, log_variances = zip(*(encoder(embed(index), own - own[0]) for index, own in parts), strict=True)
    return torch.cat(means), None if log_variances[0] is None else torch.cat(log_variances)


def all_rows(table: nn.Embedding, device: torch.device) -> torch.Tensor:
    """The vectors of a table, by its forward pass, which is where accelerate brings in weights that lie elsewhere."""
    return table(torch.arange(table.num_embeddings, device=device))


def project(inputs: int | None, outputs: int) -> nn.Module:
    """A linear map where the widths differ."""
    return nn.Identity() if inputs in (None, outputs) else nn.Linear(inputs, outputs, bias=False)
