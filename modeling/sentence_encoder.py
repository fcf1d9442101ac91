"""Where a sentence becomes latents (SentenceVAE, arXiv 2408.00655, section 3.1)."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import AutoModel

from .configuration_sentence_vae import SentenceVaeConfig
from .stream_attention import run_stream
from .stream_layout import Stream


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
        lengths = torch.bincount(sentence)
        num_queries = 0 if self.config.pooling == "sum" else self.config.num_latents
        token_slot = torch.arange(len(sentence), device=sentence.device) + num_queries * (sentence + 1)
        sizes = lengths + num_queries
        stream_sentence = torch.repeat_interleave(sizes)
        first = sizes.cumsum(0) - sizes
        index = torch.arange(len(stream_sentence), device=sentence.device)
        position_ids = index - first[stream_sentence]
        stream = Stream(torch.zeros_like(index), stream_sentence, index, position_ids, torch.zeros_like(index))

        inputs_embeds = token_embeds
        if num_queries:
            query_slot = first[:, None] + torch.arange(num_queries, device=sentence.device)
            inputs_embeds = token_embeds.new_zeros(len(index), token_embeds.shape[-1])
            inputs_embeds = inputs_embeds.index_copy(0, token_slot, token_embeds)
            queries = all_rows(self.latent_queries, sentence.device).to(token_embeds.dtype).repeat(len(lengths), 1)
            inputs_embeds = inputs_embeds.index_copy(0, query_slot.flatten(), queries)
        states = run_stream(self.model, inputs_embeds, stream, causal=False, packed=self.packed)

        if num_queries:
            states = states[query_slot]  # (S, num_latents, width)
        else:
            total = states.new_zeros(len(lengths), states.shape[-1]).index_add(0, sentence, states)
            states = self.latent_norm(total)[:, None]
        mean, *log_variance = self.latent_head(states).split(self.config.latent_size, dim=-1)
        return mean, (log_variance[0] if log_variance else None)


def all_rows(table: nn.Embedding, device: torch.device) -> torch.Tensor:
    """The vectors of a table, by its forward pass, which is where accelerate brings in weights that lie elsewhere."""
    return table(torch.arange(table.num_embeddings, device=device))


def project(inputs: int | None, outputs: int) -> nn.Module:
    """A linear map where the widths differ."""
    return nn.Identity() if inputs in (None, outputs) else nn.Linear(inputs, outputs, bias=False)


# So many tokens a prefill encodes at once: enough to be fast, and few beside what it keeps of a long text.
TOKENS_AT_ONCE = 4096


def encode_in_parts(
    encoder: nn.Module, embed: Callable, token_index: torch.Tensor, sentence: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As the encoder's own forward pass, in one call for each few thousand tokens, so that memory does not grow with
    the text. For inference with a cache, where no other process waits for these calls.

    Args:
        encoder (`SentenceEncoder`): What turns sentences into latents.
        embed: From indices of tokens, `(K,)`, to their embeddings, `(K, width)`.
        token_index, sentence: `(N,)` index and sentence of each token; at least one.
    """
    lengths = torch.bincount(sentence)
    part = (lengths.cumsum(0) - lengths) // TOKENS_AT_ONCE
    sizes = part[sentence].unique_consecutive(return_counts=True)[1].tolist()
    parts = zip(token_index.split(sizes), sentence.split(sizes), strict=True)
    means, log_variances = zip(*(encoder(embed(index), own - own[0]) for index, own in parts), strict=True)
    return torch.cat(means), None if log_variances[0] is None else torch.cat(log_variances)
