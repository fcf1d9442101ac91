"""What a decoder writes back from the latents of sentences, as they are, with noise, or between two of them."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

# Sentences that are written at once.
MAX_SENTENCES = 32


@torch.no_grad()
def write_back(
    model: Any, tokenizer: PreTrainedTokenizerBase, text: str, noise: float, seed: int
) -> list[tuple[str, str]]:
    """Each sentence of a text, and what is written from its latents.

    Args:
        model: A sentence VAE, or an SLLM that was trained to reconstruct.
        tokenizer: The model's own.
        text: Sentences.
        noise: Standard deviation of the Gaussian noise, in multiples of the latents' root mean square.
        seed: Of the noise.

    Raises:
        ValueError: If there are too many sentences.
    """
    given, latents = encode(model, tokenizer, text)
    if len(given) > MAX_SENTENCES:
        raise ValueError(f"There are {len(given)} sentences: give at most {MAX_SENTENCES}.")
    drawn = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
    written = decode(model, tokenizer, latents + noise * latents.square().mean().sqrt() * drawn)
    return list(zip(given, written, strict=True))


@torch.no_grad()
def between(
    model: Any, tokenizer: PreTrainedTokenizerBase, first: str, last: str, steps: int
) -> list[tuple[str, str]]:
    """What is written on the straight way from one sentence's latents to another's: the share gone, and the text.

    Raises:
        ValueError: If one of the texts is not one sentence.
    """
    ends = []
    for text in (first, last):
        given, latents = encode(model, tokenizer, text)
        if len(given) != 1:
            raise ValueError(f"Each end is one sentence, and one of them has {len(given)}.")
        ends.append(latents)
    share = torch.linspace(0, 1, steps).to(ends[0])
    latents = torch.lerp(ends[0], ends[1], share[:, None, None])
    return list(zip([f"{value:.0%}" for value in share.tolist()], decode(model, tokenizer, latents), strict=True))


def encode(model: Any, tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[str], torch.Tensor]:
    """The sentences of a text, and their latents `(sentences, num_latents, latent_size)`."""
    ids = torch.tensor([tokenizer(text.strip(), add_special_tokens=False)["input_ids"]], device=model.device)
    parts = model.base_model
    layout = parts.segmenter.layout(ids, torch.ones_like(ids, dtype=torch.bool))
    latents, _ = parts.sentence_encoder(model.get_input_embeddings()(ids[0]), layout.token_sentence)
    sentences = ids[0].split(torch.bincount(layout.token_sentence).tolist())
    return [_text(tokenizer, sentence) for sentence in sentences], latents


def decode(model: Any, tokenizer: PreTrainedTokenizerBase, latents: torch.Tensor) -> list[str]:
    """One sentence for each of the latents."""
    is_vae = model.config.model_type == "sentence_vae"
    return [_text(tokenizer, ids) for ids in (model.decode if is_vae else model.decode_latents)(latents)]


def _text(tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
