"""What a language model says of each token of a text, read at once or token by token: in windows of bounded length.

A window that is full is left: the next one begins with the start token and the second half of what was read."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel


def restarts(context_length: int) -> Iterator[tuple[int, int]]:
    """For each window, the first token that it predicts and how many tokens before it are read again."""
    yield 0, 0
    first, again = context_length, context_length // 2
    while True:
        yield first, again
        first += context_length - again


class Window:
    """A part of a text: the tokens that a language model reads, and those among the predicted that count."""

    def __init__(self, text: int, sequence: list[int], first: int, again: int, start: int, context_length: int):
        self.text = text
        self.again = again
        self.read = [start, *sequence[first - again : first - again + context_length - 1]]
        self.targets = sequence[first : first + context_length - again]
        self.read = self.read[: again + len(self.targets)]


def make_windows(sequences: list[list[int]], start: int, context_length: int) -> list[Window]:
    """The windows of all texts: of each in order, of all from the longest to the shortest."""
    windows = []
    for text, sequence in enumerate(sequences):
        for first, again in restarts(context_length):
            if first >= len(sequence):
                break
            windows.append(Window(text, sequence, first, again, start, context_length))
    return sorted(windows, key=lambda window: -len(window.read))  # it is stable


def read_windows(
    model: PreTrainedModel, windows: list[Window], batch_size: int
) -> Iterator[tuple[Window, torch.Tensor]]:
    """Yields each window with the `(targets, vocab)` logits of its targets; `batch_size` windows are read at once."""
    for begin in range(0, len(windows), batch_size):
        batch = windows[begin : begin + batch_size]
        # What is right of a text no token of it sees, so it needs no mask.
        ids = torch.zeros(len(batch), len(batch[0].read), dtype=torch.long, device=model.device)
        for row, window in enumerate(batch):
            ids[row, : len(window.read)] = torch.tensor(window.read)
        logits = model(input_ids=ids, use_cache=False).logits
        for row, window in enumerate(batch):
            yield window, logits[row, window.again : len(window.read)]


class TokenReader:
    """Reads texts of equal lengths so far, a token of each at a time."""

    def __init__(self, model: PreTrainedModel, rows: int, start: int, context_length: int):
        self.model = model
        self.start = start
        self.tokens = torch.empty(rows, 0, dtype=torch.long, device=model.device)
        self.restarts = restarts(context_length)
        self.next_restart = next(self.restarts)
        self.seen: torch.Tensor = self.tokens  # in this window, the start token first
        self.cache: Any = None

    def next_logits(self) -> torch.Tensor:
        """`(rows, vocab)` of the token that follows."""
        first, again = self.next_restart
        if self.tokens.shape[1] == first:
            self.next_restart = next(self.restarts)
            start = torch.full_like(
                self.tokens[:, :1] if first else self.tokens.new_empty(len(self.tokens), 1), self.start
            )
            self.seen = torch.cat([start, self.tokens[:, first - again :]], 1)
            self.cache = None
        else:
            self.seen = torch.cat([self.seen, self.tokens[:, -1:]], 1)
        # A model that keeps its state elsewhere reads the window anew each time.
        ids = self.seen if self.cache is None else self.seen[:, -1:]
        output = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True)
        self.cache = getattr(output, "past_key_values", None)
        return output.logits[:, -1]

    def append(self, tokens: torch.Tensor) -> None:
        """Takes the `(rows,)` tokens that followed."""
        self.tokens = torch.cat([self.tokens, tokens[:, None]], 1)

    def keep(self, rows: torch.Tensor) -> None:
        """Leaves the other texts."""
        self.tokens, self.seen = self.tokens[rows], self.seen[rows]
        if self.cache is not None:
            self.cache.batch_select_indices(rows)
