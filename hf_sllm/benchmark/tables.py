"""A benchmark as tables, for people."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from .predictors import PredictorSpeed
from .results import Benchmark
from .training import TrainingReport

# What each ratio is called in a table.
FIGURES = {
    "prefill_seconds": "prefill",
    "first_sentence_seconds": "first sentence",
    "tokens_per_second": "tokens/s",
    "cache_bytes_per_token": "cache",
    "peak_bytes": "peak memory",
}


def print_benchmark(found: Benchmark, console: Console) -> None:
    """The figures of each side, how they compare, and what the memory's bandwidth allows."""
    settings = found.settings
    preset = "" if settings.preset == "default" else f"preset {settings.preset}, "
    memory = f"memory of {settings.memory_layers}, " if settings.memory_layers else ""
    console.print(
        f"{settings.shapes}, {preset}{settings.dtype}, {found.device}, {found.threads} threads, decoder of "
        f"{found.decoder_layers} layers, {memory}sentences of {settings.sentence_length}, "
        f"{settings.new_tokens} new tokens, "
        f"{'' if settings.sentences_at_once == 1 else f'{settings.sentences_at_once} at once, '}"
        f"{'whole LM head' if settings.shortlist_size is None else f'lists of {settings.shortlist_size} tokens'}, "
        f"median of {settings.runs} runs; memory is read at {found.bandwidth / 1e9:.1f} GB/s",
        highlight=False,
    )
    console.print(figures_table(found), ratios_table(found), bounds_table(found))


def figures_table(found: Benchmark) -> Table:
    """What was measured."""
    table = table_of(
        "Figures", "context", "batch", "prefill s", "first sentence s", "tokens/s", "cache B/token", "peak MiB"
    )
    for row in found.rows:
        table.add_row(
            row.side,
            f"{row.context_length:,}",
            str(row.batch_size),
            f"{row.prefill_seconds:.4g}",
            f"{row.first_sentence_seconds:.4g}",
            f"{row.tokens_per_second:,.1f}",
            f"{row.cache_bytes_per_token:,.0f}",
            "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f}",
        )
    return table


def ratios_table(found: Benchmark) -> Table:
    """The SLLM's gain over each baseline."""
    table = table_of("How many times better the SLLM is than", "context", "batch", *FIGURES.values())
    for row in found.rows:
        if row.ratios:
            cells = [f"{row.ratios[name]:.2f}" if name in row.ratios else "" for name in FIGURES]
            table.add_row(row.side, f"{row.context_length:,}", str(row.batch_size), *cells)
    return table


def bounds_table(found: Benchmark) -> Table:
    """What each side has to read, and what that allows."""
    table = table_of("Roofline", "context", "batch", "MB read/token", "bound tokens/s", "tokens/s", "reached")
    for row in found.rows:
        table.add_row(
            row.side,
            f"{row.context_length:,}",
            str(row.batch_size),
            f"{row.read_bytes_per_token / 1e6:,.1f}",
            f"{row.bound:,.1f}",
            f"{row.tokens_per_second:,.1f}",
            f"{row.tokens_per_second / row.bound:.0%}",
        )
    return table


def print_training(found: TrainingReport, console: Console) -> None:
    """Tokens per second of both sides, and of the SLLM on shorter texts, padded and packed."""
    speed, parameters = found.speed, found.parameters
    table = table_of(found.title, "tokens per second", "ratio", "parameters")
    table.add_row("backbone", f"{speed.backbone:,.0f}", "", f"{parameters['backbone']:,}")
    name = f"SLLM, decoder of {found.decoder_layers} layers"
    table.add_row(name, f"{speed.sllm:,.0f}", f"{speed.ratio:.2f}", f"{parameters['SLLM']:,}")
    table.add_row("SLLM, shorter texts padded", f"{speed.padded:,.0f}", "", "")
    table.add_row("SLLM, shorter texts packed", f"{speed.packed:,.0f}", f"{speed.packing_ratio:.2f} of padded", "")
    console.print(table)


def print_predictors(title: str, found: Sequence[PredictorSpeed], console: Console) -> None:
    """Tokens per second of the backbone and of each predictor, and the ratios to the backbone."""
    table = table_of(title, "tokens per second", "ratio", "only predicted", "ratio", "parameters")
    for one in found:
        ahead = ("", "") if one.ahead is None else (f"{one.ahead:,.0f}", f"{one.ahead / found[0].written:.2f}")
        ratio = f"{one.written / found[0].written:.2f}"
        table.add_row(one.name, f"{one.written:,.0f}", ratio, *ahead, f"{one.parameters:,}")
    console.print(table)


def table_of(title: str, *columns: str) -> Table:
    """An empty one, with a first column for the side."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    return table
