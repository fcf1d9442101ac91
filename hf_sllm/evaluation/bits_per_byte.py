"""Bits per byte: the negative log2-likelihood of texts over their UTF-8 bytes.

A text is scored after one start token, its first token and its end included, so the figure is the length of a lossless
code for it. It does not know which kind of causal language model it scores.
"""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_sllm.data.blocks import BlockCollator, document_ids
from hf_sllm.modeling import SentenceSegmenter

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class BitsPerByte:
    """What was measured.

    Attributes:
        bits: Total negative log2-likelihood.
        bytes: Total UTF-8 bytes of the texts.
        tokens: How many tokens were scored, ends of text included.
        seconds: Wall time.
    """

    bits: float
    bytes: int
    tokens: int
    seconds: float

    @property
    def bits_per_byte(self) -> float:
        return self.bits / self.bytes


@torch.no_grad()
def bits_per_byte(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Mapping[str, Any]],
    batch_size: int = 16,
    progress: bool = True,
) -> BitsPerByte:
    """Scores documents, each as a whole.

    Args:
        model: Any causal language model; load it in float32 for a figure that counts.
        tokenizer: The model's own.
        documents: Rows with a `text`: a `datasets.Dataset`, or a list of dicts.
        batch_size: Documents at a time.
        progress: Whether to show a progress bar, on standard error.

    Raises:
        ValueError: If there is nothing to score, or a document is longer than the model can read: cut into pieces it
            would be scored without what comes before, so that is left to whoever cuts it.
    """
    begun = time.monotonic()
    texts = [document["text"] for document in documents]
    total_bytes = sum(len(text.encode()) for text in texts)
    if total_bytes == 0:
        raise ValueError("`documents` hold no text: there is nothing to score.")
    rows = document_ids(texts, tokenizer)
    _check_length(model, rows)
    unknown = 0 if tokenizer.unk_token_id is None else sum(row.count(tokenizer.unk_token_id) for row in rows)
    if unknown:
        logger.warning(f"{unknown} tokens are unknown to the tokenizer: what they stand for is not scored.")

    # Long ones first: what does not fit into memory fails at once.
    rows.sort(key=len, reverse=True)
    batches = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    collate = BlockCollator(tokenizer.eos_token_id)
    was_training = model.training
    model.eval()
    nats = 0.0
    try:
        for batch in track(batches, "Scoring", console=Console(stderr=True), disable=not progress, transient=True):
            inputs = collate([{"input_ids": row} for row in batch])
            nats += _nats({name: tensor.to(model.device) for name, tensor in inputs.items()}, model)
    finally:
        model.train(was_training)
    tokens = sum(len(row) - 1 for row in rows)
    return BitsPerByte(nats / math.log(2), total_bytes, tokens, time.monotonic() - begun)


def _nats(inputs: dict[str, torch.Tensor], model: PreTrainedModel) -> float:
    """Total negative log-likelihood of a batch, in nats, at the precision of its weights, even inside an autocast."""
    labels = inputs.pop("labels")
    with torch.autocast(model.device.type, enabled=False):
        logits = model(**inputs, use_cache=False).logits
    losses = F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="none"
    )
    return losses.double().sum().item()


def _check_length(model: PreTrainedModel, rows: list[list[int]]) -> None:
    """Refuses a document with more positions than the model has."""
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is None:
        return
    longest = max(rows, key=len)
    unit, needed = "tokens", len(longest)
    if model.config.model_type == "sllm" and needed > limit:
        # The backbone of an SLLM has one position per sentence, and one for the start.
        segmenter = SentenceSegmenter(model.config)
        counts = []
        for row in rows:
            token_ids = torch.tensor([row])
            layout = segmenter.layout(token_ids, torch.ones_like(token_ids, dtype=torch.bool))
            counts.append(len(layout.sentence_row) + 1)
        unit, needed = "sentences", max(counts)
    if needed > limit:
        raise ValueError(
            f"a document has {needed} {unit}, and the model reads at most {limit} (`max_position_embeddings`): cut "
            "the documents, or leave it out."
        )


def entropy_floor(documents: Iterable[Mapping[str, Any]]) -> float | None:
    """The bits per byte below which no model can score on average: known where the documents were drawn from a known
    distribution, and tell in `bits` what that gave each. `None` where they do not.
    """
    rows = list(documents)
    if not rows or any(row.get("bits") is None for row in rows):
        return None
    return sum(row["bits"] for row in rows) / sum(len(row["text"].encode()) for row in rows)


__all__ = ["BitsPerByte", "bits_per_byte", "entropy_floor"]
