"""Other memories than a model's own: what they change shows what the memory brings."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Makes other arguments of those of `LatentMemory`: states, what their sentences said so far, which these are, the
# memory, and which sentences are in it.
Change = Callable[..., tuple[torch.Tensor, ...]]


@contextmanager
def changed_memory(model: Any, change: Change) -> Iterator[None]:
    """Within it, an SLLM reads another memory than its own."""
    shapes: list[torch.Size] = []

    def before(_: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        shapes.append(arguments[0].shape)
        return change(*arguments)

    def after(_: Any, arguments: tuple[torch.Tensor, ...], states: torch.Tensor) -> torch.Tensor:
        return states.view(shapes.pop())

    memory = model.model.memory
    handles = [memory.register_forward_pre_hook(before), memory.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def of_another_text(
    states: torch.Tensor,
    said: torch.Tensor,
    sentence: torch.Tensor,
    memory: torch.Tensor,
    memory_sentence: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Each text of the batch reads the memory of the one before it, of as many sentences; a text alone in its batch
    reads none."""
    if len(states) == 1:
        return states, said, sentence, memory, memory_sentence.masked_fill(memory_sentence > 0, -1)
    return states, said, sentence, memory.roll(1, 0), memory_sentence.roll(1, 0)


def of_newest_sentence(
    states: torch.Tensor,
    said: torch.Tensor,
    sentence: torch.Tensor,
    memory: torch.Tensor,
    memory_sentence: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Each position reads the sentence before its own, and the start."""
    row = torch.arange(len(states), device=states.device)[:, None]
    newest = memory[row, sentence.clamp(max=memory.shape[1] - 1)]  # (batch, Q, num_latents, …)
    # A text for each position, whose memory has two entries.
    entries = torch.stack([memory[:, :1].expand_as(newest), newest], 2).flatten(0, 1)
    numbers = torch.tensor([0, 1], device=states.device).expand(len(entries), -1)
    flat = [values.flatten(0, 1)[:, None] for values in (states, said)]
    return *flat, (sentence.flatten() > 0).long()[:, None], entries, numbers
