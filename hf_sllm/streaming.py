"""Text as it is written: the streamer that `generate` calls once per sentence."""

import time
from collections.abc import Callable

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer


class SentenceStreamer(BaseStreamer):
    """Hands on the text of each sentence as soon as it is written, the prompt's first.

    The pieces join to exactly what decoding all the ids gives: they are differences between decodings of the whole so
    far, for a tokenizer may decode a token differently at the beginning. A character whose bytes are not all there is
    held back.

    Args:
        tokenizer: Decodes; special tokens are left out.
        write: Called with each piece of text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], object]):
        self.tokenizer = tokenizer
        self.write = write
        self.tokens = 0
        self.sentences = 0
        self._ids: list[int] = []
        self._written = 0
        self._prompt_time: float | None = None
        self._last_time = 0.0

    @property
    def seconds(self) -> float:
        """From the prompt to the last sentence; never 0."""
        return max(self._last_time - (self._prompt_time or 0.0), 1e-9)

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt's ids, then each sentence's."""
        ids = value.flatten().tolist()
        self._last_time = time.monotonic()
        if self._prompt_time is None:
            self._prompt_time = self._last_time
        else:
            self.tokens += len(ids)
            self.sentences += 1
        self._ids += ids
        text = self._text()
        self._hand_on(text[: len(text.rstrip("\ufffd"))])

    def end(self) -> None:
        """Hands on what was held back."""
        self._hand_on(self._text())

    def _text(self) -> str:
        return str(self.tokenizer.decode(self._ids, skip_special_tokens=True))

    def _hand_on(self, text: str) -> None:
        if len(text) > self._written:
            self.write(text[self._written :])
            self._written = len(text)
