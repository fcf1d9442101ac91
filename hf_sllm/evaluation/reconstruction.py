"""How much of a sentence survives its latents: what a sentence VAE writes back, beside what it was given."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_sllm.data.blocks import BlockCollator, cut_at_sentences, document_ids

# Sentences are reconstructed one by one, so where a text is cut makes no difference.
BLOCK_SIZE = 512


@dataclass(frozen=True)
class Reconstruction:
    """What was measured.

    Attributes:
        token_accuracy: Share of the tokens that stand where they stood, in sentences written greedily from their
            latents alone. A token left out or added makes all after it wrong.
        next_token_accuracy: Share of the tokens predicted rightly from the latents and the true tokens before.
        exact_sentences: Share of the sentences written back without a fault.
        tokens, sentences: How many there were.
        seconds: Wall time.
    """

    token_accuracy: float
    next_token_accuracy: float
    exact_sentences: float
    tokens: int
    sentences: int
    seconds: float


@torch.no_grad()
def reconstruction(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Mapping[str, Any]],
    batch_size: int = 16,
    progress: bool = True,
) -> Reconstruction:
    """Has every sentence of the documents encoded and written back.

    Args:
        model: A `SentenceVaeModel`.
        tokenizer: The model's own.
        documents: Rows with a `text`.
        batch_size: Blocks of 512 tokens at a time.
        progress: Whether to show a progress bar, on standard error.

    Raises:
        ValueError: If the model is no sentence VAE, or there is nothing to reconstruct.
    """
    begun = time.monotonic()
    if model.config.model_type != "sentence_vae":
        raise ValueError(
            f"`model` is a {model.config.model_type!r}: only a sentence VAE writes back what it was given."
        )
    texts = [document["text"] for document in documents]
    # The start token is no part of any sentence.
    ids = [row[1:] for row in document_ids(texts, tokenizer)]
    config: Any = model.config
    block_size = max(BLOCK_SIZE, config.max_sentence_length)
    blocks = [block for row in ids for block in cut_at_sentences(row, config, block_size)]
    if not blocks:
        raise ValueError("`documents` hold no text: there is nothing to reconstruct.")
    blocks.sort(key=len, reverse=True)
    batches = [blocks[first : first + batch_size] for first in range(0, len(blocks), batch_size)]
    collate = BlockCollator(tokenizer.eos_token_id)
    was_training = model.training
    model.eval()
    right = predicted = tokens = exact = sentences = 0
    try:
        for batch in track(
            batches, "Reconstructing", console=Console(stderr=True), disable=not progress, transient=True
        ):
            inputs = collate([{"input_ids": block} for block in batch])
            input_ids, mask = inputs["input_ids"].to(model.device), inputs["attention_mask"].to(model.device)
            guesses = model(input_ids, mask).logits.argmax(-1)
            predicted += (guesses == input_ids)[mask.bool()].sum().item()
            layout = model.segmenter.layout(input_ids, mask.bool())  # type: ignore[operator]
            given = input_ids.flatten()[layout.token_index].split(torch.bincount(layout.token_sentence).tolist())
            written = model.reconstruct(input_ids, mask)  # type: ignore[operator]
            for sentence, copy in zip(given, written, strict=True):
                shared = min(len(sentence), len(copy))
                right += (sentence[:shared] == copy[:shared]).sum().item()
                exact += torch.equal(sentence, copy)
            tokens += len(layout.token_index)
            sentences += len(given)
    finally:
        model.train(was_training)
    seconds = time.monotonic() - begun
    return Reconstruction(right / tokens, predicted / tokens, exact / sentences, tokens, sentences, seconds)


__all__ = ["Reconstruction", "reconstruction"]
