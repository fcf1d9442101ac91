"""The picture of a frontier: bits per byte over tokens per second, a panel for each length of context."""

from pathlib import Path

from .frontier_points import Point

COLOURS = {"token_level": "C0", "sllm": "C1"}


def plot_frontier(points: list[Point], floor: float | None, path: Path) -> None:
    """Draws an SVG. A model that no other beats in bits, speed and cache in any seed is a filled dot, another one a
    ring. The bits are the median over the seeds; the bytes that its cache keeps per token stand beside each name.

    Raises:
        ImportError: If `matplotlib` is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('drawing needs `matplotlib`: pip install "hf-sllm[train]"') from error

    context_lengths = list(points[0].tokens_per_second)
    figure = Figure(figsize=(10, 4 * len(context_lengths)), layout="constrained")
    for axes, context_length in zip(
        figure.subplots(len(context_lengths), 1, squeeze=False)[:, 0], context_lengths, strict=True
    ):
        for number, point in enumerate(points, 1):
            place = (point.tokens_per_second[context_length], point.median_bits)
            colour, cache = COLOURS[point.kind], point.cache_bytes_per_token[context_length]
            axes.scatter(
                *place,
                s=60,
                edgecolors=colour,
                facecolors=colour if point.is_unbeaten(context_length) else "none",
                label=f"{number}  {point.name}: {cache:,.0f} bytes",
            )
            axes.annotate(str(number), place, xytext=(5, 5), textcoords="offset points")
        if floor is not None:
            axes.axhline(floor, color="gray", linestyle=":", label="floor of these texts")
        axes.set(
            title=f"after {context_length:,} tokens (a ring: beaten by another)",
            xlabel="tokens per second",
            ylabel="bits per byte",
        )
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="cache per token", frameon=False)
    figure.savefig(path, metadata={"Date": None})
