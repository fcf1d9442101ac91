"""Sentence statistics as a picture."""

from pathlib import Path

import numpy as np

from .statistics import SentenceStatistics


def plot_sentence_lengths(statistics: SentenceStatistics, path: str | Path) -> None:
    """Draws how many sentences have each length, and the share of the tokens that are in sentences up to it.

    Args:
        statistics: Of natural sentences, see `sentence_statistics`.
        path: Where the PNG is written.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import PercentFormatter
    except ImportError as error:
        raise ImportError('drawing needs matplotlib: pip install "hf-sllm[train]"') from error

    maximum = statistics.max_sentence_length
    cut = next(cut for cut in statistics.cuts if cut.max_sentence_length == maximum)
    lengths, numbers = np.array(list(statistics.lengths.items())).T
    # The few longest ones would press all others against the axis.
    shown = max(statistics.tokens_per_sentence.p99, maximum * 5 // 4)

    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    above, below = figure.subplots(2, sharex=True)
    above.bar(lengths, numbers, width=1.0)
    above.set_ylabel("sentences")
    above.set_title(
        f"{statistics.sentences:,} sentences of {statistics.documents:,} documents, "
        f"the longest of {statistics.tokens_per_sentence.max:,} tokens"
    )
    below.step(lengths, np.cumsum(lengths * numbers) / statistics.tokens, where="post")
    below.set_ylabel("share of tokens in sentences\nup to this length")
    below.yaxis.set_major_formatter(PercentFormatter(1.0))
    below.set(xlabel="sentence length in tokens", xlim=(0, shown + 0.5), ylim=(0, 1))
    for axes in (above, below):
        axes.axvline(maximum + 0.5, color="black", linestyle="--")
    above.legend(
        [above.lines[0]],
        [f"cut at {maximum}: {cut.cut_sentences:.1%} of sentences, {cut.cut_tokens:.1%} of tokens"],
    )
    figure.savefig(path, format="png", dpi=120)
