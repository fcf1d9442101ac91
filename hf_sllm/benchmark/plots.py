"""A benchmark as a figure: a panel for each figure, over the length of the context."""

from pathlib import Path

from .results import Benchmark

# What is drawn: the row's attribute, the panel's title, the axis.
PANELS = [
    ("prefill_seconds", "Reading the context", "seconds"),
    ("first_sentence_seconds", "Until the first sentence", "seconds"),
    ("tokens_per_second", "Writing", "tokens per second"),
    ("cache_bytes_per_token", "Cache", "bytes per token of context"),
    ("peak_bytes", "Weights, and the most beside them", "bytes"),
]
MARKERS = "os^Dv"


def plot_benchmark(found: Benchmark, path: Path) -> None:
    """Draws a PNG. A side has its colour, a size of batch its marker.

    Raises:
        ImportError: If `matplotlib` is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('drawing needs `matplotlib`: pip install "hf-sllm[train]"') from error

    figure = Figure(figsize=(4.4 * len(PANELS), 4.4), layout="constrained")
    sides = list(dict.fromkeys(row.side for row in found.rows))
    batch_sizes = sorted({row.batch_size for row in found.rows})
    for axes, (name, title, unit) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for side_index, side in enumerate(sides):
            for batch_index, batch_size in enumerate(batch_sizes):
                rows = [row for row in found.rows if (row.side, row.batch_size) == (side, batch_size)]
                points = [(row.context_length, getattr(row, name)) for row in rows if getattr(row, name) is not None]
                if points:
                    axes.plot(
                        *zip(*points, strict=True),
                        color=f"C{side_index}",
                        marker=MARKERS[batch_index % len(MARKERS)],
                        label=f"{side}, batch {batch_size}",
                    )
        axes.set(title=title, xlabel="tokens of context", ylabel=unit)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.legend()
    settings = found.settings
    figure.suptitle(
        f"{settings.shapes}, {settings.dtype}, {found.device}, decoder of {found.decoder_layers} layers, "
        f"sentences of {settings.sentence_length} tokens"
    )
    figure.savefig(path, dpi=100)
