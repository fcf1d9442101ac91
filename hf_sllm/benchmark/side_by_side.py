"""Models of several shapes that write by turns: tokens per second, and what their caches hold.

Weights are random, as in all of this folder: speed hangs on shapes. Here each model has sentences of its own length.
"""

import copy
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from transformers import AutoModelForCausalLM, PreTrainedConfig

from .generation import Clock, Side, write
from .memory import bytes_held
from .shapes import BOUNDARY, random_text


@dataclass(frozen=True)
class WritingSpeed:
    """What was measured of one model after one length of context, in a batch of one text.

    Attributes:
        tokens_per_second: The median over the runs, of the tokens after the first sentence.
        cache_bytes_per_token: What the cache holds, over the tokens read.
    """

    tokens_per_second: float
    cache_bytes_per_token: float


def measure_side_by_side(
    configs: Sequence[PreTrainedConfig],
    sentence_lengths: Sequence[int],
    context_lengths: Sequence[int],
    device: torch.device,
    new_tokens: int = 128,
    runs: int = 3,
    progress: bool = True,
) -> list[dict[int, WritingSpeed]]:
    """Lets models of these configs read random texts and write on, one after the other, in each run anew.

    Args:
        configs: Of causal language models, SLLMs or others. Positions are added where a text needs more.
        sentence_lengths: Of each, the tokens of a sentence.
        context_lengths: Tokens that are read first, less what is no whole sentence.
        new_tokens: Tokens that are written in each run, two sentences at least, less what is no whole sentence.
        runs: How many times each model is timed; a round before them does not count.
        progress: Whether to show a progress bar, on standard error.

    Returns:
        For each config, its figures by length of context.
    """
    sides = [_side(config, max(context_lengths) + new_tokens, device) for config in configs]
    found: list[dict[int, WritingSpeed]] = [{} for _ in sides]
    console = Console(stderr=True)
    for context_length in track(context_lengths, "Writing by turns", console=console, disable=not progress):
        texts = []
        for side, length in zip(sides, sentence_lengths, strict=True):
            vocab_size = side.model.config.get_text_config(decoder=True).vocab_size
            texts.append(random_text(1, context_length - context_length % length, length, vocab_size).to(device))
        speeds: list[list[float]] = [[] for _ in sides]
        for _ in range(runs + 1):
            for side, text, length, own in zip(sides, texts, sentence_lengths, speeds, strict=True):
                clock = Clock(side.model)
                read, written = text.shape[1], new_tokens - new_tokens % length
                write(side, text, length, written, clock)
                own.append((written - length) / clock.between(read + length, read + written))
        for figures, side, text, own in zip(found, sides, texts, speeds, strict=True):
            figures[context_length] = WritingSpeed(
                statistics.median(own[1:]), _cache_bytes(side, text) / text.shape[1]
            )
    return found


def _side(config: PreTrainedConfig, positions: int, device: torch.device) -> Side:
    """A model with random weights that closes sentences where the benchmark does, and never ends a text."""
    config = copy.deepcopy(config)
    parts: list[Any] = [config, config.get_text_config(decoder=True)]
    options = {}
    if config.model_type == "sllm":
        parts.append(config.sentence_decoder_config)
        options = {"max_sentences": math.inf}
        fields = {"boundary_token_ids": [BOUNDARY], "clause_token_ids": [], "min_sentence_length": 1}
        for name, value in fields.items():
            setattr(config, name, value)
    for part in parts:
        part.bos_token_id = part.eos_token_id = 0
        part.pad_token_id = None
        if getattr(part, "max_position_embeddings", None) is not None:
            part.max_position_embeddings = max(part.max_position_embeddings, positions)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().to(device)
    return Side(config.model_type, model, options)


def _cache_bytes(side: Side, token_ids: torch.Tensor) -> int:
    """What the cache holds one step after the context was read: a window's still refers to all of it right after."""
    written = side.model.generate(  # type: ignore[operator]
        token_ids,
        attention_mask=torch.ones_like(token_ids),
        max_new_tokens=2,
        do_sample=False,
        return_dict_in_generate=True,
        pad_token_id=0,
        **side.options,
    )
    return bytes_held(written.past_key_values)
