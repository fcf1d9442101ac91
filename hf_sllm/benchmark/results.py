"""What was measured of generation: one object, from which come the tables, the JSON and the figure."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .generation import Figures, check_lengths
from .roofline import Weights

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass
class Settings:
    """What was asked for.

    Attributes:
        shapes: See `make_pair`.
        context_lengths, batch_sizes: Each with each.
        sentence_length: Tokens of each sentence.
        new_tokens: Tokens that each row gets.
        decoder_layers: Of the SLLM; None for what `from_backbone` takes. With the preset "paper" also of its encoder.
        dtype: Of the weights and of all that is computed: one of `DTYPES`.
        shortlist_size: Of the SLLM's lists of tokens; None for the whole LM head.
        compiled: Whether there is also the backbone with a static cache, compiled.
        runs: How many times each side is timed.
        preset: Of the SLLM: "default" or "paper", see `from_backbone`.
        sentences_at_once: How many the SLLM writes side by side, see `generate`; more than 1 for single texts only.
        memory_layers: Of the SLLM's memory, with 4 latents for each sentence; 0 for none.
    """

    shapes: str = "smollm2-135m"
    context_lengths: Sequence[int] = (256, 2048)
    batch_sizes: Sequence[int] = (1, 8)
    sentence_length: int = 16
    new_tokens: int = 64
    decoder_layers: int | None = None
    dtype: str = "bfloat16"
    shortlist_size: int | None = None
    compiled: bool = False
    runs: int = 5
    preset: str = "default"
    sentences_at_once: int = 1
    memory_layers: int = 0

    def check(self) -> None:
        """
        Raises:
            ValueError: If something cannot be measured.
        """
        if self.dtype not in DTYPES:
            raise ValueError(f"`dtype` is {self.dtype!r}: it must be one of {', '.join(DTYPES)}.")
        for name, values in (("context_lengths", self.context_lengths), ("batch_sizes", self.batch_sizes)):
            if not values or min(values) < 1:
                raise ValueError(f"`{name}` is {list(values)}: it must have numbers of at least 1.")
        if self.runs < 1:
            raise ValueError(f"`runs` is {self.runs}: it must be at least 1.")
        if self.sentences_at_once < 1:
            raise ValueError(f"`sentences_at_once` is {self.sentences_at_once}: it must be at least 1.")
        if self.sentences_at_once > 1 and max(self.batch_sizes) > 1:
            raise ValueError(
                f"`batch_sizes` is {list(self.batch_sizes)}: with `sentences_at_once`, {self.sentences_at_once}, it "
                "must be 1."
            )
        for length in self.context_lengths:
            check_lengths(length, self.sentence_length, self.new_tokens, self.sentences_at_once)


@dataclass
class Row:
    """A side at one length of context and one size of batch. Times are medians over the runs.

    Attributes:
        side: Its name.
        context_length, batch_size: Tokens of each row, and rows.
        prefill_seconds, first_sentence_seconds, tokens_per_second, peak_bytes: See `Figures`.
        cache_bytes_per_token: For each token of context.
        read_bytes_per_token: What each token written makes the side read, see `Weights`.
        bound: Tokens per second that memory bandwidth allows.
        ratios: How many times better the SLLM is than this side, by figure: of times, the median over the runs'
            ratios. Empty for the SLLM itself.
        runs: The times of each run.
    """

    side: str
    context_length: int
    batch_size: int
    prefill_seconds: float
    first_sentence_seconds: float
    tokens_per_second: float
    cache_bytes_per_token: float
    peak_bytes: int | None
    read_bytes_per_token: float
    bound: float
    ratios: dict[str, float]
    runs: dict[str, list[float]]


@dataclass
class Benchmark:
    """What was measured.

    Attributes:
        settings: What was asked for.
        device, threads: Where it ran; torch's threads within an operation.
        decoder_layers: Of the SLLM.
        parameters: Of each side.
        bandwidth: Bytes per second, see `memory_bandwidth`.
        versions: Of what computed it.
        rows: The figures.
    """

    settings: Settings
    device: str
    threads: int
    decoder_layers: int
    parameters: dict[str, int]
    bandwidth: float
    versions: dict[str, str]
    rows: list[Row] = field(default_factory=list)

    def save(self, file: Path) -> None:
        """As JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")


def make_row(
    side: str,
    context_length: int,
    batch_size: int,
    sentence_length: int,
    figures: Figures,
    weights: Weights,
    bandwidth: float,
    ratios: dict[str, float],
) -> Row:
    """The figures of one side, beside the bound."""
    cache_bytes_per_row = figures.cache_bytes / batch_size
    read = weights.read_for_token(batch_size, sentence_length, cache_bytes_per_row)
    runs = {name: getattr(figures, name) for name in TIMED}
    return Row(
        side=side,
        context_length=context_length,
        batch_size=batch_size,
        **{name: statistics.median(values) for name, values in runs.items()},
        cache_bytes_per_token=cache_bytes_per_row / context_length,
        peak_bytes=figures.peak_bytes,
        read_bytes_per_token=read,
        bound=bandwidth / read,
        ratios=ratios,
        runs=runs,
    )


# The figures that are taken in each run, and whether more is better.
TIMED = {"prefill_seconds": False, "first_sentence_seconds": False, "tokens_per_second": True}


def compare(baseline: Figures, sllm: Figures) -> dict[str, float]:
    """How many times better the SLLM is, by figure."""
    ratios = {}
    for name, more_is_better in TIMED.items():
        pairs = zip(getattr(baseline, name), getattr(sllm, name), strict=True)
        ratios[name] = statistics.median(own / base if more_is_better else base / own for base, own in pairs)
    ratios["cache_bytes_per_token"] = baseline.cache_bytes / sllm.cache_bytes
    if baseline.peak_bytes is not None and sllm.peak_bytes is not None:
        ratios["peak_bytes"] = baseline.peak_bytes / sllm.peak_bytes
    return ratios
