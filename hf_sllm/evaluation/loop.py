"""What each measurement goes through: its batches, with a bar, by a model in evaluation mode."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_sllm.data.blocks import BlockCollator

Item = TypeVar("Item")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model as it is used, without dropout; then in the mode in which it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def in_batches(items: Sequence[Item], size: int, title: str, progress: bool) -> Iterable[Sequence[Item]]:
    """The items, `size` at a time, while a bar on standard error says how far it is."""
    batches = [items[first : first + size] for first in range(0, len(items), size)]
    return with_bar(batches, title, progress)


def with_bar(items: Iterable[Item], title: str, progress: bool) -> Iterable[Item]:
    """The items, while a bar on standard error, which goes when they end, says how far it is."""
    return track(items, title, console=Console(stderr=True), disable=not progress, transient=True)


def padded(
    rows: Sequence[Sequence[int] | torch.Tensor], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask of rows, `(batch, length)`, padded on the right."""
    batch = BlockCollator(tokenizer.eos_token_id)([{"input_ids": row} for row in rows])
    return batch["input_ids"].to(device), batch["attention_mask"].to(device)
