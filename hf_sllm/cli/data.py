"""Commands that look at data, and that make some."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from hf_sllm.embedded import embedded_checkpoint

from .common import app, told_plainly

if TYPE_CHECKING:
    from hf_sllm.data import CastTotals, SentenceStatistics
    from hf_sllm.data.woven_facts import WovenTotals

data_app = typer.Typer(help="Look at data, and make some.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.command()
def stats(
    source: Annotated[list[str], typer.Argument(help="Files of documents, or datasets on the Hub (name:config).")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Path or name of a tokenizer; by default the embedded checkpoint's.")
    ] = None,
    unit: Annotated[str, typer.Option(help="`sentence` or `clause`.")] = "sentence",
    max_sentence_length: Annotated[int, typer.Option(min=1, help="A sentence is cut at so many tokens.")] = 64,
    split: Annotated[str, typer.Option(help="The split of a dataset on the Hub.")] = "train",
    text_column: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many documents only.")] = None,
    streaming: Annotated[bool, typer.Option("--streaming", help="Read on the way, keeping nothing on disk.")] = False,
    output: Annotated[Path | None, typer.Option(help="A folder for sentences.json and sentences.png.")] = None,
) -> None:
    """Measure how long sentences are, and what a maximum length cuts."""
    with told_plainly():
        import dataclasses
        import json

        from transformers import AutoTokenizer

        from hf_sllm.data import load_documents, plot_sentence_lengths, sentence_rule, sentence_statistics

        name = tokenizer or embedded_checkpoint()
        used = AutoTokenizer.from_pretrained(name)
        rule = sentence_rule(used, unit, max_sentence_length)
        documents = load_documents(source, split, text_column, limit, streaming=streaming)
        found = sentence_statistics(documents, used, rule)
        print_statistics(found)
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            about = {"source": source, "limit": limit, "tokenizer": name, "unit": unit, **dataclasses.asdict(found)}
            (output / "sentences.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            plot_sentence_lengths(found, output / "sentences.png")


def print_statistics(found: "SentenceStatistics") -> None:
    """Two tables: how long the sentences are, and what each maximum length cuts."""
    console = Console()
    table = Table(
        title=f"{found.documents:,} documents, {found.sentences:,} sentences",
        caption=f"{found.single_tokens:,} sentences are a single token",
    )
    for name in ("", "in all", "mean", "median", "90 %", "99 %", "longest"):
        table.add_column(name, justify="right" if name else "left")
    for unit, total, lengths in (
        ("tokens", found.tokens, found.tokens_per_sentence),
        ("bytes", found.bytes, found.bytes_per_sentence),
    ):
        figures = (lengths.median, lengths.p90, lengths.p99, lengths.max)
        table.add_row(unit, f"{total:,}", f"{lengths.mean:.1f}", *(f"{figure:,}" for figure in figures))
    console.print(table)

    table = Table(title="What a maximum sentence length does")
    for name in ("tokens at most", "sentences", "tokens each", "sentences cut", "tokens in these"):
        table.add_column(name, justify="right")
    for cut in found.cuts:
        table.add_row(
            str(cut.max_sentence_length),
            f"{cut.sentences:,}",
            f"{cut.tokens_per_sentence:.1f}",
            f"{cut.cut_sentences:.1%}",
            f"{cut.cut_tokens:.1%}",
            style="bold" if cut.max_sentence_length == found.max_sentence_length else None,
        )
    console.print(table)


@data_app.command()
def casts(
    output: Annotated[Path, typer.Option(help="A folder for casts.train.jsonl.gz and casts.valid.jsonl.gz.")],
    documents: Annotated[int, typer.Option(help="So many documents to train on.")] = 6000,
    valid_documents: Annotated[int, typer.Option(help="So many held-out documents.")] = 400,
    cast: Annotated[int, typer.Option(help="People in a document.")] = 4,
    words: Annotated[int, typer.Option(help="So many of the first words of each list are used.")] = 64,
    sentences: Annotated[float, typer.Option(help="Sentences that follow on average, half about people.")] = 40,
    distance: Annotated[int, typer.Option(help="Sentences about nobody between introduction and these.")] = 0,
    seed: Annotated[int, typer.Option(help="Of both files, whose documents are drawn apart in any case.")] = 0,
) -> None:
    """Sample documents whose later sentences follow from their beginning."""
    with told_plainly():
        from hf_sllm.data import CastSettings, write_casts

        settings = CastSettings(cast=cast, words=words, sentences=sentences, distance=distance)
        print_casts(write_casts(output, documents, valid_documents, settings, seed), output)


def print_casts(written: "dict[str, CastTotals]", folder: Path) -> None:
    """One table: what is in each file, and what it costs to write it with and without a memory."""
    table = Table(title=f"Casts in {folder}")
    for name in ("", *written):
        table.add_column(name, justify="right" if name else "left")
    for field in ("documents", "sentences", "facts", "bytes"):
        table.add_row(field, *(f"{getattr(totals, field):,}" for totals in written.values()))
    table.add_row("floor, bits per byte", *(f"{totals.floor:.4f}" for totals in written.values()))
    table.add_row("forgetful, bits per byte", *(f"{totals.forgetful:.4f}" for totals in written.values()))
    table.add_row("what memory saves", *(f"{1 - totals.floor / totals.forgetful:.1%}" for totals in written.values()))
    Console().print(table)


@data_app.command()
def facts(
    train_source: Annotated[str, typer.Argument(help="Stories to train on: files, or a dataset on the Hub.")],
    valid_source: Annotated[str, typer.Argument(help="Stories to hold out.")],
    output: Annotated[Path, typer.Option(help="A folder for facts.train.jsonl.gz and facts.valid.jsonl.gz.")],
    documents: Annotated[int, typer.Option(help="So many documents to train on.")] = 20_000,
    valid_documents: Annotated[int, typer.Option(help="So many held-out documents.")] = 400,
    sentences: Annotated[int, typer.Option(help="At most so many sentences of stories in a document.")] = 96,
    facts: Annotated[int, typer.Option(help="At most so many facts in a document.")] = 4,
    questions: Annotated[int, typer.Option(help="At most so many questions in a document.")] = 8,
    seed: Annotated[int, typer.Option(help="Of both files, whose documents are drawn apart in any case.")] = 0,
) -> None:
    """Weave facts into stories, and ask for them many sentences later."""
    with told_plainly():
        from hf_sllm.data.woven_facts import WovenFactSettings, write_woven_facts

        settings = WovenFactSettings(sentences=sentences, facts=facts, questions=questions)
        written = write_woven_facts(train_source, valid_source, output, documents, valid_documents, settings, seed)
        print_facts(written, output)


def print_facts(written: "dict[str, WovenTotals]", folder: Path) -> None:
    """One table: what is in each file."""
    table = Table(title=f"Facts in {folder}")
    for name in ("", *written):
        table.add_column(name, justify="right" if name else "left")
    for title, field in (
        ("documents", "documents"),
        ("sentences", "sentences"),
        ("questions", "questions"),
        ("16 sentences back or more", "far"),
        ("bytes", "bytes"),
    ):
        table.add_row(title, *(f"{getattr(totals, field):,}" for totals in written.values()))
    Console().print(table)
