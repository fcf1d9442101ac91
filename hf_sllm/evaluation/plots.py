"""An evaluation as a figure: a panel for each curve that was measured."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .results import Evaluation, Side
from .tables import span_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_evaluation(found: Evaluation, path: Path) -> None:
    """Draws a PNG; nothing where no curve was measured.

    Raises:
        ImportError: If `matplotlib` is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('drawing needs `matplotlib`: pip install "hf-sllm[train]"') from error

    panels = [measure for measure in PANELS if any(measure in side.figures for side in found.sides)]
    if not panels:
        return
    figure = Figure(figsize=(5.2 * len(panels), 4.4), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        sides = [side for side in found.sides if measure in side.figures]
        PANELS[measure](axes, sides)
        axes.legend()
    figure.suptitle(f"{', '.join(Path(name).name for name in found.data)}, {found.documents:,} documents")
    figure.savefig(path, dpi=100)


def plot_lengths(axes: "Axes", sides: list[Side]) -> None:
    """Bits per token by how long the sentence is."""
    for side in sides:
        rows = side.figures["likelihood"].by_sentence_length
        spans = [span_of(row.shortest, row.longest) for row in rows]
        axes.plot(spans, [row.bits_per_token for row in rows], marker="o", label=side.label)
    axes.set(title="By length of the sentence", xlabel="tokens", ylabel="bits per token", ylim=(0, None))


def plot_context(axes: "Axes", sides: list[Side]) -> None:
    """Bits per byte by how much of the text before is given."""
    for side in sides:
        use = side.figures["context"]
        axes.errorbar(
            [str(count) for count in use.sentences],
            use.bits_per_byte,
            use.standard_errors,
            marker="o",
            capsize=3,
            label=side.label,
        )
    axes.set(title="Use of context", xlabel="sentences before", ylabel="bits per byte")


def plot_needle(axes: "Axes", sides: list[Side]) -> None:
    """How often a fact is known, by how long ago it was stated."""
    for side in sides:
        found = side.figures["needle"]
        places = [str(distance) for distance in found.distances]
        axes.errorbar(places, found.accuracy, found.standard_errors, marker="o", capsize=3, label=side.label)
    axes.axhline(found.chance, color="gray", linestyle="--", label="chance")
    axes.set(title="A fact stated before", xlabel="sentences between", ylabel="share known", ylim=(0, 1.02))


def plot_brier(axes: "Axes", sides: list[Side]) -> None:
    """Brier score by how many tokens are foretold."""
    for side in sides:
        found = side.figures["brier"]
        places = [str(size) for size in found.block_sizes]
        axes.errorbar(places, found.brier, found.standard_errors, marker="o", capsize=3, label=side.label)
    axes.set(title="Samples of the next tokens", xlabel="tokens", ylabel="Brier score", ylim=(0, None))


PANELS: dict[str, Callable[["Axes", list[Side]], None]] = {
    "likelihood": plot_lengths,
    "context": plot_context,
    "needle": plot_needle,
    "brier": plot_brier,
}
