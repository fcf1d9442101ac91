"""Sentences to inspect: the first ones of some documents, in batches, with what is known of each token."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hf_sllm.data import document_ids
from hf_sllm.evaluation.loop import padded
from hf_sllm.modeling import SentenceVaeConfig
from hf_sllm.modeling.sentence_segmentation import SentenceLayout, SentenceSegmenter
from hf_sllm.modeling.stream_layout import pad_rows


@dataclass
class Batch:
    """Documents of similar length, `(batch, length)`, padded on the right."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    layout: SentenceLayout

    @property
    def token_ids(self) -> torch.Tensor:
        """`(N,)`."""
        return self.input_ids.flatten()[self.layout.token_index]

    @property
    def predictions(self) -> torch.Tensor:
        """`(batch,)` how many sentences of each document an SLLM predicts: one at the start, one after each closed."""
        closed = self.layout.sentence_row[self.layout.sentence_closed]
        return torch.bincount(closed, minlength=len(self.input_ids)) + 1


@dataclass
class Sample:
    """`S` sentences of `N` tokens, of which an SLLM predicts `J`; on the CPU what is known of all, batch after batch.

    Attributes:
        batches: The documents.
        document: `(S,)` each sentence's document, in order.
        predicted_document: `(J,)` the document of each prediction, in order.
        sentence: `(N,)` each token's sentence, in order.
        position: `(N,)` its position in the sentence, from 1.
        token_ids: `(N,)`.
    """

    batches: list[Batch]
    document: torch.Tensor
    predicted_document: torch.Tensor
    sentence: torch.Tensor
    position: torch.Tensor
    token_ids: torch.Tensor

    @property
    def documents(self) -> int:
        return int(self.document[-1]) + 1

    @cached_property
    def length(self) -> torch.Tensor:
        """`(S,)` tokens of each sentence."""
        return torch.bincount(self.sentence)

    def sentences(self) -> tuple[torch.Tensor, ...]:
        """Token ids of each sentence."""
        return self.token_ids.split(self.length.tolist())

    def entropy(self) -> float:
        """Entropy in bits of a sentence drawn from the sample: log2 of their number where no two are equal."""
        counts = torch.tensor(list(Counter(tuple(ids.tolist()) for ids in self.sentences()).values())).double()
        share = counts / counts.sum()
        return -(share * share.log2()).sum().item()


def take_sample(
    documents: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    config: SentenceVaeConfig,
    limit: int,
    batch_size: int,
    device: torch.device,
) -> Sample:
    """The first sentences of documents. The last document is cut where a sentence ends.

    Raises:
        ValueError: If they are sentences of fewer than two documents.
    """
    segmenter = SentenceSegmenter(config)
    rows: list[list[int]] = []
    left = limit
    for document in documents:
        if left <= 0:
            break
        (ids,) = document_ids([document["text"]], tokenizer)
        if config.model_type == "sentence_vae":
            ids = ids[1:]  # where there is nothing to predict, the start token is no part of any sentence
        token_ids = torch.tensor([ids])
        starts = segmenter.layout(token_ids, torch.ones_like(token_ids).bool()).token_offset == 0
        ends = [*starts.nonzero()[1:, 0].tolist(), len(ids)]
        rows.append(ids[: ends[min(left, len(ends)) - 1]])
        left -= len(ends)
    if len(rows) < 2:
        raise ValueError(
            f"`limit` is {limit}: so many sentences come from {len(rows)} of the documents. At least two are needed, "
            "for the latents of one are compared with those of another: raise `limit`, or give more documents."
        )

    rows.sort(key=len, reverse=True)
    batches = []
    for first in range(0, len(rows), batch_size):
        input_ids, mask = padded(rows[first : first + batch_size], tokenizer, device)
        batches.append(Batch(input_ids, mask, segmenter.layout(input_ids, mask.bool())))
    return Sample(
        batches,
        document=owners([torch.bincount(batch.layout.sentence_row) for batch in batches]),
        predicted_document=owners([batch.predictions for batch in batches]),
        sentence=owners([torch.bincount(batch.layout.token_sentence) for batch in batches]),
        position=torch.cat([batch.layout.token_offset for batch in batches]).cpu() + 1,
        token_ids=torch.cat([batch.token_ids for batch in batches]).cpu(),
    )


def owners(counts: list[torch.Tensor]) -> torch.Tensor:
    """`0, …, 0, 1, …`: the owner of each item, from how many items each has, batch after batch."""
    return torch.repeat_interleave(torch.cat(counts).cpu())


@dataclass(frozen=True)
class WholeSentences:
    """A text that is to go on.

    Attributes:
        token_ids: All of its tokens.
        ends: After which of them its whole sentences end.
        latents: `(1, sentences, num_latents, latent_size)` of these.
        mask: `(1, sentences)`, true.
    """

    token_ids: list[int]
    ends: list[int]
    latents: torch.Tensor
    mask: torch.Tensor


def whole_sentences(model: Any, tokenizer: PreTrainedTokenizerBase, text: str) -> WholeSentences:
    """Encodes the whole sentences of a text.

    Raises:
        ValueError: If the model is no SLLM, or the text has none.
    """
    if model.config.model_type != "sllm":
        raise ValueError(
            f"this is a {model.config.model_type!r} model, whose backbone reads no sentences: give an SLLM."
        )
    (row,) = document_ids([text], tokenizer)
    if row[-1] == tokenizer.eos_token_id:  # the text goes on
        row = row[:-1]
    token_ids = torch.tensor([row], device=model.device)
    layout, latents = model.model.encode_all(token_ids, torch.ones_like(token_ids), None)
    closed = layout.sentence_closed
    latents, mask = pad_rows(latents[closed], layout.sentence_row[closed], 1)
    ends = layout.token_index[layout.token_closes].add(1).tolist()
    if not ends:
        raise ValueError("`text` has no whole sentence: there is none that another could follow.")
    return WholeSentences(list(row), ends, latents, mask)
