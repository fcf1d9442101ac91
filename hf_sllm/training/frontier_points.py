"""The points of a frontier: what was measured of each model, which of them no other beats, and the table of both."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


@dataclass
class Point:
    """A model and what was measured of it.

    Attributes:
        name: As in the frontier file.
        kind: `token_level` or `sllm`.
        parameters: How many it has, tied ones once.
        training_flops: Of one training, forward and backward passes.
        tokens_seen: Tokens trained on.
        minutes: Wall time of the trainings that count, by seed.
        chosen_by: Bits per byte on the half that chooses, by learning rate, of the first seed.
        learning_rate: The one with the fewest.
        bits_per_byte: On the other half, by seed.
        sentence_length: Tokens of the sentences in which speed was measured.
        tokens_per_second: By length of context; empty until it is measured.
        cache_bytes_per_token: By length of context.
        unbeaten: By length of context, the seeds in which no other point beats it.
    """

    name: str
    kind: str
    parameters: int
    training_flops: float
    tokens_seen: int
    minutes: dict[int, float]
    chosen_by: dict[float, float]
    learning_rate: float
    bits_per_byte: dict[int, float]
    sentence_length: int
    tokens_per_second: dict[int, float] = field(default_factory=dict)
    cache_bytes_per_token: dict[int, float] = field(default_factory=dict)
    unbeaten: dict[int, list[int]] = field(default_factory=dict)

    @property
    def median_bits(self) -> float:
        """Bits per byte, the median over the seeds."""
        return statistics.median(self.bits_per_byte.values())

    def costs(self, context_length: int, seed: int) -> tuple[float, float, float]:
        """Bits, slowness and cache: less of each is better."""
        return (
            self.bits_per_byte[seed],
            -self.tokens_per_second[context_length],
            self.cache_bytes_per_token[context_length],
        )

    def is_unbeaten(self, context_length: int) -> bool:
        """Whether no other point beats it there, in any seed."""
        return set(self.unbeaten.get(context_length, ())) == set(self.bits_per_byte)


def best_rate(chosen_by: dict[float, float]) -> float:
    """The learning rate with the fewest bits; one whose training diverged has no number of them."""
    return min(chosen_by, key=lambda rate: math.inf if math.isnan(chosen_by[rate]) else chosen_by[rate])


def beats(costs: Sequence[float], other: Sequence[float]) -> bool:
    """Whether it is at least as good in all, and better in one. What is no number is worse than any."""
    own, others = ([math.inf if math.isnan(cost) else cost for cost in costs] for costs in (costs, other))
    return own != others and all(a <= b for a, b in zip(own, others, strict=True))


def mark_unbeaten(points: list[Point]) -> None:
    """Finds for each point where no other beats it in bits, speed and cache together."""
    for point in points:
        point.unbeaten = {
            context_length: [
                seed
                for seed in point.bits_per_byte
                if not any(
                    beats(other.costs(context_length, seed), point.costs(context_length, seed)) for other in points
                )
            ]
            for context_length in point.tokens_per_second
        }


def write_points(points: list[Point], floor: float | None, path: Path) -> None:
    """Writes all that is known so far."""
    values = {"floor": floor, "points": [asdict(point) for point in points]}
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def print_points(points: list[Point], floor: float | None, title: str, console: Console) -> None:
    """Prints what each model reached, what writing with it costs, and where a better learning rate may lie."""
    table = Table(title=title, box=SIMPLE_HEAD)
    for name in ("", "bits per byte", "each seed", "learning rate", "parameters", "training FLOPs"):
        table.add_column(name, justify="right" if name else "left")
    if floor is not None:
        table.add_row("floor", f"{floor:.4f}")
    for point in points:
        seeds = " ".join(f"{bits:.4f}" for bits in point.bits_per_byte.values())
        table.add_row(
            point.name, f"{point.median_bits:.4f}", seeds, f"{point.learning_rate:g}", f"{point.parameters:,}",
            f"{point.training_flops:.2e}",
        )  # fmt: skip
    console.print(table)
    for context_length in points[0].tokens_per_second:
        table = Table(title=f"writing after {context_length:,} tokens", box=SIMPLE_HEAD)
        for name in ("", "bits per byte", "tokens per second", "cache bytes per token", "unbeaten in seeds"):
            table.add_column(name, justify="right" if name else "left")
        for point in points:
            table.add_row(
                point.name,
                f"{point.median_bits:.4f}",
                f"{point.tokens_per_second[context_length]:,.0f}",
                f"{point.cache_bytes_per_token[context_length]:,.1f}",
                f"{len(point.unbeaten[context_length])} of {len(point.bits_per_byte)}",
                style="bold" if point.is_unbeaten(context_length) else None,
            )
        console.print(table)
    for point in points:
        if len(point.chosen_by) > 1 and point.learning_rate in (min(point.chosen_by), max(point.chosen_by)):
            end = "lowest" if point.learning_rate == min(point.chosen_by) else "highest"
            console.print(
                f"{point.name}: the best learning rate is the {end} that was tried, {point.learning_rate:g}. A better "
                "one may lie beyond it."
            )
