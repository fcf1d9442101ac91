"""Documents as token ids, with the places of their sentences in tokens and in text."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from hf_sllm.modeling import SentenceSegmenter


@dataclass(frozen=True)
class Sentence:
    """A sentence of some token ids: `ids[begin:end]`, and whether the rule closed it."""

    begin: int
    end: int
    closed: bool


@dataclass(frozen=True)
class SegmentedDocument:
    """A document and its sentences.

    Attributes:
        text: The whole of it.
        ids: Its token ids, without a start token and without an end of text.
        ends: How many characters of the text there are up to each token's end.
        sentences: In order; the last one may be open.
    """

    text: str
    ids: list[int]
    ends: list[int]
    sentences: list[Sentence]

    def text_of(self, sentence: Sentence) -> str:
        """The characters of a sentence. Those of all sentences join to the text."""
        begin = self.ends[sentence.begin - 1] if sentence.begin else 0
        return self.text[begin : self.ends[sentence.end - 1]]


def segment_documents(
    documents: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, rule: PreTrainedConfig
) -> list[SegmentedDocument]:
    """Tokenises documents and finds their sentences.

    Args:
        documents: Rows with a `text`.
        tokenizer: A fast one, which knows where in the text each token is.
        rule: Says where sentences end: a config that `SentenceSegmenter` takes.

    Raises:
        ValueError: If there are no documents, or the tokenizer is not a fast one.
    """
    texts = [document["text"] for document in documents]
    if not texts:
        raise ValueError("`documents` is empty: there is nothing to measure.")
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} does not tell where in a text its tokens are: use a fast one.")
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    rows = zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [
        SegmentedDocument(text, ids, [end for _, end in offsets], sentences_of(ids, rule))
        for text, ids, offsets in rows
    ]


def sentences_of(ids: list[int], rule: PreTrainedConfig) -> list[Sentence]:
    """The sentences of token ids that begin where a sentence begins."""
    if not ids:
        return []
    token_ids = torch.tensor([ids])
    layout = SentenceSegmenter(rule).layout(token_ids, torch.ones_like(token_ids, dtype=torch.bool))
    places = pairwise(accumulate(torch.bincount(layout.token_sentence).tolist(), initial=0))
    return [Sentence(*place, closed) for place, closed in zip(places, layout.sentence_closed.tolist(), strict=True)]


__all__ = ["SegmentedDocument", "Sentence", "segment_documents", "sentences_of"]
