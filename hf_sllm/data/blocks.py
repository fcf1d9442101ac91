"""Documents to training examples: token ids in blocks that begin where sentences begin, and batches of these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from hf_sllm.modeling import SentenceSegmenter, SentenceVaeConfig

from .chats import TURNS

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    Documents = TypeVar("Documents", Dataset, IterableDataset)

# Documents cut at a time: enough for a fast tokenizer, few enough where each is a book.
DOCUMENTS_AT_A_TIME = 64


def make_blocks(
    documents: Documents,
    tokenizer: PreTrainedTokenizerBase,
    config: SentenceVaeConfig,
    block_size: int,
    num_proc: int | None = None,
) -> Documents:
    """Cuts documents into blocks of at most `block_size` tokens. Every token is in exactly one block.

    Args:
        documents: With a column `text`. Streamed ones are cut as they come. If they have `assistant_turns`, see
            `load_chats`, only these are learned.
        tokenizer: Its own special tokens are left out: a document begins with one start token and ends with `eos`.
        config: Says where sentences end.
        block_size: The longest block, in tokens.
        num_proc: Processes to do it in; the blocks are the same. Streamed documents are cut in the workers of their
            `DataLoader` instead.

    Returns:
        A dataset of the documents' kind with the columns `input_ids` and `length`, and `labels` of chats, in the
        documents' order. If the documents are cached on disk, so is it, by what it is made of.

    Raises:
        ValueError: If a block could be shorter than a sentence, the tokenizer has no end of text, or streamed
            documents are to be cut by several processes.
    """
    from datasets import Features, IterableDataset, List, Value
    from datasets.fingerprint import Hasher

    if block_size < config.max_sentence_length:
        raise ValueError(
            f"`block_size` is {block_size}: it must be at least `max_sentence_length`, {config.max_sentence_length}, "
            "for blocks to begin where sentences begin."
        )
    if num_proc is not None and isinstance(documents, IterableDataset):
        raise ValueError(
            f"`num_proc` is {num_proc}, and streamed documents are cut as they come: leave it out, and give their "
            "`DataLoader` workers."
        )
    start_token_id(tokenizer)
    # Tokenizers change state when they are called, and with it the hash that `datasets` would find by itself.
    rules = (
        config.boundary_token_ids,
        config.clause_token_ids,
        config.min_sentence_length,
        config.min_clause_length,
        config.max_sentence_length,
        config.eos_token_id,
    )
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    vocabulary = sorted(tokenizer.get_vocab().items())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rule = backend.to_str() if backend is not None else type(tokenizer).__name__

    is_chat = TURNS in (documents.column_names or ())
    columns = ["text", TURNS] if is_chat else ["text"]
    kinds = {"labels": List(Value("int32"))} if is_chat else {}

    def blocks_of(batch: dict[str, list]) -> dict[str, list]:
        blocks = [
            block
            for ids in document_ids(batch["text"], tokenizer)
            for block in cut_at_sentences(ids, config, block_size)
        ]
        lengths = [len(block) for block in blocks]
        labels = {"labels": list(labels_of(batch, tokenizer, lengths))} if is_chat else {}
        return {"input_ids": blocks, "length": lengths, **labels}

    how: dict[str, Any] = {
        "batched": True,
        "batch_size": DOCUMENTS_AT_A_TIME,
        "remove_columns": columns,
        "features": Features({"input_ids": List(Value("int32")), "length": Value("int32"), **kinds}),
    }
    texts = documents.select_columns(columns)
    if isinstance(texts, IterableDataset):
        return texts.map(blocks_of, **how)
    return texts.map(
        blocks_of,
        **how,
        num_proc=num_proc,
        desc="Cutting documents into blocks",
        new_fingerprint=Hasher.hash([texts._fingerprint, rules, special, vocabulary, rule, block_size]),
    )


def document_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each text: the start token, the text, the end of text."""
    start = start_token_id(tokenizer)
    # A long document is what blocks are for: no warning about the tokenizer's maximum.
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [[start, *ids, tokenizer.eos_token_id] for ids in encoded]


def labels_of(batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, lengths: list[int]) -> Iterator[list[int]]:
    """The labels of blocks of these lengths, which the chats of a batch were cut into: -100 but where the assistant
    speaks."""
    encoded = tokenizer(batch["text"], add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    labels: list[int] = []
    for ids, offsets, turns in zip(encoded["input_ids"], encoded["offset_mapping"], batch[TURNS], strict=True):
        own = [
            token_id if any(begin <= first < end for begin, end in turns) else -100
            for token_id, (first, _) in zip(ids, offsets, strict=True)
        ]
        labels += [-100, *own, -100]  # the start token and the end of text are of nobody
    for length in lengths:
        yield labels[:length]
        del labels[:length]


def start_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What a text is scored and generated after: the beginning of text if the tokenizer has one, else its end.

    Raises:
        ValueError: If the tokenizer has no end of text.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no `eos_token`, which ends a text: set one.")
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def cut_at_sentences(ids: list[int], config: SentenceVaeConfig, block_size: int) -> list[list[int]]:
    """Blocks of at most `block_size` tokens, as long as whole sentences allow."""
    if len(ids) <= block_size:
        return [ids]
    token_ids = torch.tensor([ids])
    layout = SentenceSegmenter(config).layout(token_ids, torch.ones_like(token_ids, dtype=torch.bool))
    starts = (layout.token_offset == 0).nonzero().squeeze(1).tolist()
    cuts = [0]
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        if end - cuts[-1] > block_size:
            cuts.append(start)
    return [ids[begin:end] for begin, end in zip(cuts, [*cuts[1:], len(ids)], strict=True)]


class BlockCollator:
    """Makes a batch of blocks: padded on the right, padding neither attended to nor scored.

    Args:
        pad_token_id: What stands at padding. Which token that is makes no difference.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns `input_ids`, `attention_mask` and `labels`, all `(batch, length)`."""
        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        attention_mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        input_ids = torch.full_like(attention_mask, self.pad_token_id)
        input_ids[attention_mask.bool()] = torch.cat([torch.as_tensor(example["input_ids"]) for example in examples])
        labels = input_ids.masked_fill(attention_mask == 0, -100)
        if "labels" in examples[0]:
            labels[attention_mask.bool()] = torch.cat([torch.as_tensor(example["labels"]) for example in examples])
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
