"""What was found, as one figure: a row of panels for the latents, and one for each task."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .findings import TASKS, findings
from .latents import HIDDEN, NOISY, NOISY_BEFORE, OTHER, TRUE
from .results import LatentHealth, reading_of
from .scores import Reading, Score
from .statistics import ACTIVE_VARIANCE

# The shares of a score, in words.
SHARES = {"accuracy": "likeliest token", "written": "token written greedily", "exact": "sentence written greedily"}

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_latents(health: LatentHealth, path: Path, title: str = "") -> None:
    """Draws a PNG.

    Raises:
        ImportError: If `matplotlib` is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('drawing needs `matplotlib`: pip install "hf-sllm[train]"') from error

    tasks = [task for task in TASKS if getattr(health, task)]
    figure = Figure(figsize=(15, 4.2 * (1 + len(tasks)) + 0.6), layout="constrained")
    rows = figure.subplots(1 + len(tasks), 3)
    plot_variance(rows[0, 0], health)
    if health.kl is None:
        plot_spectrum(rows[0, 1], health)
    else:
        plot_kl(rows[0, 1], health.kl)
    plot_information(rows[0, 2], health)
    for axes, task in zip(rows[1:], tasks, strict=True):
        plot_noise(axes[0], getattr(health, task), TASKS[task])
        plot_use(axes[1], getattr(health, task), "by_position", f"{TASKS[task]}, by position in the sentence")
        plot_use(axes[2], getattr(health, task), "by_length", f"{TASKS[task]}, by length of the sentence")
    figure.suptitle("\n".join([title, *findings(health)]).strip())
    figure.savefig(path, dpi=100)


def plot_variance(axes: "Axes", health: LatentHealth) -> None:
    """Variance of each unit, the largest first."""
    # What is nearly 0 has no place on a logarithmic axis.
    axes.semilogy([max(variance, 1e-8) for variance in sorted(health.variance, reverse=True)])
    axes.axhline(ACTIVE_VARIANCE, color="gray", linestyle="--", label=f"active above {ACTIVE_VARIANCE}")
    axes.set(title=f"{health.active_units} of {len(health.variance)} units active", xlabel="unit", ylabel="variance")
    axes.legend()


def plot_kl(axes: "Axes", kl: list[float]) -> None:
    """KL of each unit, the largest first."""
    axes.plot([nats / math.log(2) for nats in sorted(kl, reverse=True)])
    axes.set(title=f"KL: {sum(kl) / math.log(2):.1f} bits per sentence", xlabel="unit", ylabel="bits", ylim=(0, None))


def plot_spectrum(axes: "Axes", health: LatentHealth) -> None:
    """How much of the variance each principal direction has."""
    total = sum(health.spectrum) or 1.0
    axes.loglog(range(1, len(health.spectrum) + 1), [max(value / total, 1e-8) for value in health.spectrum])
    axes.set(
        title=f"effective dimension {health.effective_dimension:.1f}; no KL, for latents are points",
        xlabel="principal direction",
        ylabel="share of the variance",
    )


def plot_information(axes: "Axes", health: LatentHealth) -> None:
    """What latents under noise tell about their sentence."""
    noise = [row.noise for row in health.information]
    axes.plot(noise, [row.bits for row in health.information], marker="o")
    axes.axhline(health.entropy, color="gray", linestyle="--", label="most that this sample can show")
    axes.set(title="mutual information of sentence and latents", ylabel="bits", ylim=(0, None))
    scale_noise(axes)


def plot_noise(axes: "Axes", readings: list[Reading], task: str) -> None:
    """What noise does to a task: to what is written, or else to the nats per token."""
    writes = readings[0].whole.written is not None
    for name in (NOISY, NOISY_BEFORE):
        curve = [reading for reading in readings if reading.latents in (TRUE, name)]
        if len(curve) == 1:
            continue
        noise = [reading.noise for reading in curve]
        for field, label in SHARES.items() if writes else [("nats", name)]:
            axes.plot(noise, [getattr(reading.whole, field) for reading in curve], marker="o", label=label)
    for name, style in ((HIDDEN, "--"), (OTHER, ":")):
        reading = reading_of(readings, name)
        if reading is not None:
            level = reading.whole.accuracy if writes else reading.whole.nats
            axes.axhline(level, color="gray", linestyle=style, label=f"{'likeliest token, ' * writes}{name}")
    axes.set(title=f"{task}, under noise", ylabel="share right" if writes else "nats per token")
    scale_noise(axes)


def scale_noise(axes: "Axes") -> None:
    """The axis of noise: logarithmic, with a place for none."""
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set(xlabel="noise, in standard deviations of each unit", xlim=(0, None))
    axes.legend()


def plot_use(axes: "Axes", readings: list[Reading], group: str, title: str) -> None:
    """By position or length: the shares of what was written right, or else the nats with each kind of latents."""
    writes = readings[0].whole.written is not None
    curves: dict[str, dict[str, float]] = {}
    for reading in readings:
        if reading.noise > 0:
            continue
        scores: dict[str, Score] = getattr(reading, group)
        if not writes:
            curves[reading.latents] = {key: score.nats for key, score in scores.items()}
        elif reading.latents == TRUE:
            for field, label in SHARES.items():
                if field != "exact" or group == "by_length":
                    curves[label] = {key: getattr(score, field) for key, score in scores.items()}
        elif reading.latents == HIDDEN:
            curves[f"likeliest token, {HIDDEN}"] = {key: score.accuracy for key, score in scores.items()}
    for label, values in curves.items():
        style: dict[str, Any] = {"color": "gray", "linestyle": "--"} if label.endswith(HIDDEN) else {"marker": "o"}
        axes.plot(list(values), list(values.values()), label=label, **style)
    axes.set(title=title, xlabel="tokens", ylabel="share right" if writes else "nats per token", ylim=(0, None))
    axes.legend()
