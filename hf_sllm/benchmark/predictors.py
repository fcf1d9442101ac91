"""What it costs to predict latents in one way or another: sentences written one after the other, and sentences that
are only predicted and never written (continuous inference, arXiv 2505.22202), beside the bare backbone by turns."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch.utils.benchmark import timer

from .generation import Clock, Side, check_lengths, write
from .shapes import make_pair, random_text

# By their names in the table: the predictor, and the steps in which it samples.
PREDICTORS: dict[str, tuple[str, int | None]] = {
    "linear": ("linear", None),
    "mse": ("mse", None),
    "flow, 20 steps": ("flow", 20),
    "diffusion, 10 steps": ("diffusion", 10),
    "diffusion, 40 steps": ("diffusion", 40),
}


@dataclass(frozen=True)
class PredictorSpeed:
    """What was measured of one way to predict, in a batch of one text.

    Attributes:
        name: Of `PREDICTORS`, or "backbone".
        parameters: Of the whole model.
        written: Tokens per second, the median over the runs: each sentence is written and read again.
        ahead: Tokens that predicted sentences would have, per second: neither written nor read. `None` where a
            backbone does not read its own predictions.
    """

    name: str
    parameters: int
    written: float
    ahead: float | None


def measure_predictors(
    shapes: str,
    context_length: int,
    sentence_length: int,
    sentences: int,
    decoder_layers: int | None = None,
    runs: int = 3,
    progress: bool = True,
    device: torch.device | None = None,
) -> list[PredictorSpeed]:
    """The bare backbone, then each of `PREDICTORS`, all with random weights, in float32.

    Args:
        shapes, decoder_layers: See `make_pair`.
        context_length: Tokens that are read first.
        sentence_length: Tokens of each sentence.
        sentences: How many are written and predicted, two at least. The first one is not timed.
        runs: How many times each is timed; a round before them does not count.
        progress: Whether to show a progress bar, on standard error.
        device: The CPU by default.

    Raises:
        ValueError: If the lengths do not fit, see `check_lengths`.
    """
    new_tokens = sentences * sentence_length
    check_lengths(context_length, sentence_length, new_tokens)
    device = torch.device("cpu") if device is None else device
    backbone, sllms = None, {}
    for kind in dict.fromkeys(kind for kind, _ in PREDICTORS.values()):
        backbone, sllms[kind] = (
            model.to(device).eval()  # type: ignore[arg-type]
            for model in make_pair(shapes, sentence_length, decoder_layers, latent_predictor={"type": kind})
        )
    assert backbone is not None
    sides = [Side("backbone", backbone, {})]
    for name, (kind, steps) in PREDICTORS.items():
        chosen = {} if steps is None else {"latent_steps": steps}
        sides.append(Side(name, sllms[kind], {"max_sentences": math.inf, **chosen}))
    vocab_size = backbone.config.get_text_config(decoder=True).vocab_size
    token_ids = random_text(1, context_length, sentence_length, vocab_size).to(device)

    written: list[list[float]] = [[] for _ in sides]
    ahead: list[list[float]] = [[] for _ in sides]
    rounds = track(
        range(runs + 1), "Writing and predicting by turns", console=Console(stderr=True), disable=not progress
    )
    for _ in rounds:
        for side, speeds, speeds_ahead in zip(sides, written, ahead, strict=True):
            clock = Clock(side.model)
            write(side, token_ids, sentence_length, new_tokens, clock)
            first, last = context_length + sentence_length, context_length + new_tokens
            speeds.append((last - first) / clock.between(first, last))
            model: Any = side.model
            if model is not backbone and not model.config.has_linear_predictor:
                steps = side.options.get("latent_steps")
                # Reading the context and predicting one sentence is what both have in common.
                one, all_of_them = (
                    _seconds(partial(model.predict_ahead, token_ids, count=count, latent_steps=steps))
                    for count in (1, sentences)
                )
                speeds_ahead.append((sentences - 1) * sentence_length / max(all_of_them - one, 1e-9))
    return [
        PredictorSpeed(
            side.name,
            side.model.num_parameters(),
            statistics.median(speeds[1:]),
            statistics.median(speeds_ahead[1:]) if speeds_ahead else None,
        )
        for side, speeds, speeds_ahead in zip(sides, written, ahead, strict=True)
    ]


def _seconds(work: Callable[[], object]) -> float:
    """How long something takes. torch's timer waits for the GPU, if there is one."""
    begun = timer()
    work()
    return timer() - begun
