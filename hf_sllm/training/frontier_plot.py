"""The picture of a frontier: bits per byte over tokens per second, a panel for each length of context."""

from pathlib import Path

from .frontier_points import Point

COLOURS = {"token_level": "C0", "sllm": "C1"}
LABELS = {"token_level": "token-level", "sllm": "SLLM"}


def plot_frontier(points: list[Point], floor: float | None, path: Path) -> None:
    """Draws an SVG. A model that no other beats in bits, speed and cache is a filled dot, another one a ring; the
    median over the seeds is shown, and beside each name the bytes of its cache per token.

    Raises:
        ImportError: If `matplotlib` is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('drawing needs `matplotlib`: pip install "hf-sllm[train]"') from error

    context_lengths = list(points[0].tokens_per_second)
    figure = Figure(figsize=(6.5 * len(context_lengths), 5.5), layout="constrained")
    for axes, context_length in zip(
        figure.subplots(1, len(context_lengths), squeeze=False, sharey=True)[0], context_lengths, strict=True
    ):
        for kind, colour in COLOURS.items():
            axes.scatter([], [], color=colour, label=LABELS[kind])
        axes.scatter([], [], edgecolors="black", facecolors="none", label="beaten by another in bits, speed and cache")
        for point in points:
            speed, colour = point.tokens_per_second[context_length], COLOURS[point.kind]
            fill = colour if point.is_unbeaten(context_length) else "none"
            axes.scatter(speed, point.median_bits, s=60, edgecolors=colour, facecolors=fill)
            cache = f"{point.cache_bytes_per_token[context_length]:,.0f} B"
            axes.annotate(
                f"{point.name}: {cache}", (speed, point.median_bits), xytext=(6, 4), textcoords="offset points", size=7
            )
        if floor is not None:
            axes.axhline(floor, color="gray", linestyle=":", label="floor of these texts")
        axes.set(title=f"after {context_length:,} tokens", xlabel="tokens per second", xscale="log")
        axes.margins(x=0.3)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.supylabel("bits per byte of held-out texts")
    figure.savefig(path, metadata={"Date": None})
