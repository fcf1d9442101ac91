"""An evaluation as tables, for people: a line for each figure, a column for each side."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from .results import Evaluation, Side

# A line: what it is called, its value, and how that is written.
Line = tuple[str, float | None, str]


def print_evaluation(found: Evaluation, console: Console) -> None:
    """One table for each measure, and what could not be measured."""
    console.print(
        f"{', '.join(found.data)}: {found.documents:,} documents, {found.bytes:,} bytes; "
        f"window {found.window}, stride {found.stride}, seed {found.seed}",
        highlight=False,
    )
    for side in found.sides:
        console.print(f"{side.name}: {side.model_type}, {side.parameters:,} parameters", highlight=False)
        if side.samples_latents:
            console.print(
                f"{side.name} samples the latents of sentences: its bits are of one sample, on average no fewer than "
                "those of the text itself.",
                highlight=False,
            )
    for measure, (title, lines_of) in TABLES.items():
        sides = [side for side in found.sides if measure in side.figures]
        if sides:
            console.print(table_of(title, lines_of, measure, sides, found.floor))
    for side in found.sides:
        for measure, reason in side.failures.items():
            console.print(f"{measure} of {side.name} was not measured: {reason}", style="yellow", highlight=False)


def table_of(
    title: str, lines_of: Callable[[Any], list[Line]], measure: str, sides: list[Side], floor: float | None
) -> Table:
    """The cells as a table for the terminal."""
    head, *rows = cells_of(lines_of, measure, sides, floor)
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(head):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    return table


def cells_of(
    lines_of: Callable[[Any], list[Line]], measure: str, sides: list[Side], floor: float | None
) -> list[list[str]]:
    """A column for each side; where there are two, and bits, also their ratio. The first row are the heads."""
    columns = [(side.label, lines_of(side.figures[measure])) for side in sides]
    if measure == "writing":
        columns.insert(0, ("the documents", text_lines(sides[0].figures[measure].reference)))
    if measure == "likelihood" and floor is not None:
        columns.insert(0, ("floor", [("bits per byte", floor, ".4f")]))
    values = [{label: (value, form) for label, value, form in lines} for _, lines in columns]
    labels = list(dict.fromkeys(label for column in values for label in column))
    has_ratio = len(sides) == 2 and any(label.startswith("bits") for label in labels)

    rows = [["", *(name for name, _ in columns), *(["ratio"] if has_ratio else [])]]
    for label in labels:
        cells = [column.get(label, (None, "")) for column in values]
        texts = ["" if value is None else format(value, form) for value, form in cells]
        if has_ratio:
            (first, _), (second, _) = cells[-2:]
            texts.append(f"{first / second:.3f}" if label.startswith("bits") and first and second else "")
        rows.append([label, *texts])
    return rows


def likelihood_lines(figures: Any) -> list[Line]:
    """All in all, by the length of sentences, and where they end."""
    total, stops = figures.total, figures.stopping
    return [
        ("bits per byte", total.bits_per_byte, ".4f"),
        *(
            (f"bits per token, {span_of(row.shortest, row.longest)} in sentence", row.bits_per_token, ".3f")
            for row in figures.by_sentence_length
        ),
        ("token perplexity", total.token_perplexity, ".2f"),
        ("tokens", total.tokens, ",d"),
        ("sentence ends: precision", stops.precision, ".1%"),
        ("sentence ends: recall", stops.recall, ".1%"),
        ("sentence ends: F1", stops.f1, ".1%"),
        ("seconds", total.seconds, ".1f"),
    ]


def span_of(first: int, last: int | None) -> str:
    """`5-8`, or `65 or more`."""
    return f"{first} or more" if last is None else f"{first}-{last}"


def context_lines(figures: Any) -> list[Line]:
    """What more of the text before is worth."""
    lines: list[Line] = [("sentences predicted", figures.targets, ",d")]
    for count, bits, error in zip(figures.sentences, figures.bits_per_byte, figures.standard_errors, strict=True):
        lines.append((f"bits per byte after {count} sentences", bits, ".4f"))
        lines.append((f"  standard error, {count}", error, ".4f"))
    return lines


def needle_lines(figures: Any) -> list[Line]:
    """How often a fact is known."""
    lines: list[Line] = [("chance", figures.chance, ".1%"), ("trials each", figures.trials, ",d")]
    for distance, share, error in zip(figures.distances, figures.accuracy, figures.standard_errors, strict=True):
        lines.append((f"right after {distance} sentences", share, ".1%"))
        lines.append((f"  standard error, {distance}", error, ".1%"))
    return lines


def text_lines(figures: Any) -> list[Line]:
    """What texts look like."""
    return [
        ("distinct tokens", figures.distinct_1, ".1%"),
        ("distinct pairs", figures.distinct_2, ".1%"),
        ("distinct triples", figures.distinct_3, ".1%"),
        ("repeated groups of 4", figures.repetition, ".1%"),
        ("tokens per sentence", figures.sentence_tokens, ".1f"),
        ("characters per sentence", figures.sentence_characters, ".1f"),
        ("texts that ended", figures.ended, ".1%"),
        ("tokens", figures.tokens, ",d"),
    ]


def writing_lines(figures: Any) -> list[Line]:
    """Of what the model wrote."""
    return text_lines(figures.generated)


def brier_lines(figures: Any) -> list[Line]:
    """The mean over block sizes, and each."""
    lines: list[Line] = [
        ("BrierLM", figures.brier_lm, ".2f"),
        ("  standard error", figures.brier_lm_standard_error, ".2f"),
    ]
    for size, score, error in zip(figures.block_sizes, figures.brier, figures.standard_errors, strict=True):
        lines.append((f"Brier-{size}", score, ".4f"))
        lines.append((f"  standard error, {size}", error, ".4f"))
    return [*lines, ("prefixes", figures.prefixes, ",d")]


def reconstruction_lines(figures: Any) -> list[Line]:
    """What came back."""
    return [
        ("tokens right", figures.token_accuracy, ".2%"),
        ("next tokens right", figures.next_token_accuracy, ".2%"),
        ("exact sentences", figures.exact_sentences, ".2%"),
        *(
            (f"  {name} of {span_of(row.shortest, row.longest)} tokens", value, ".2%")
            for row in figures.by_sentence_length
            for name, value in (("tokens right", row.token_accuracy), ("exact", row.exact_sentences))
        ),
        ("chrF", figures.chrf, ".2f"),
        ("BLEU", figures.bleu, ".2f"),
        ("tokens", figures.tokens, ",d"),
        ("sentences", figures.sentences, ",d"),
        ("seconds", figures.seconds, ".1f"),
    ]


def shortlist_lines(figures: Any) -> list[Line]:
    """What lists of each size hold, for each way of choosing them."""
    lines: list[Line] = []
    ways = {"token": "a list for each token", "sentence": "a list for each sentence", "best": "the whole head's own"}
    for lists in figures.lists:
        nats = lists.nats or [None] * len(figures.sizes)
        each = (figures.sizes, lists.coverage, lists.mass, lists.same, nats)
        for size, coverage, mass, same, cost in zip(*each, strict=True):
            lines.append((f"{ways[lists.way]}, {size}: the text's tokens", coverage, ".2%"))
            lines.append((f"  probability, {lists.way} {size}", mass, ".2%"))
            if lists.way != "best":
                lines.append((f"  most likely token, {lists.way} {size}", same, ".2%"))
            if cost is not None:
                lines.append((f"  nats per token, {lists.way} {size}", cost, ".4f"))
    lines.append(("nats per token, the whole head", figures.nats, ".4f"))
    return [*lines, ("tokens", figures.tokens, ",d"), ("sentences", figures.sentences, ",d")]


def parallel_lines(figures: Any) -> list[Line]:
    """What it costs to know fewer of the sentences before."""
    lines: list[Line] = [
        ("bits per byte, one after the other", figures.ordinary_bits_per_byte, ".4f"),
        ("  nats per token", figures.ordinary_nats, ".4f"),
    ]
    for distance, (bits, nats) in enumerate(zip(figures.bits_per_byte, figures.nats, strict=True)):
        lines.append((f"bits per byte, {distance} sentences ahead", bits, ".4f"))
        lines.append((f"  nats per token, {distance}", nats, ".4f"))
    return [*lines, ("tokens", figures.tokens, ",d"), ("sentences", figures.sentences, ",d")]


def latent_prediction_lines(figures: Any) -> list[Line]:
    """The model's predictions, and those that know nothing."""
    names = {"predicted": "predicted", "mean": "the mean of all", "before": "the sentence before"}
    lines: list[Line] = []
    for way in figures.ways:
        lines.append((f"{names[way.way]}: told from others", way.contrastive, ".1%"))
        lines.append((f"  standard error, {names[way.way]}", way.contrastive_error, ".1%"))
        lines.append((f"  distance, {names[way.way]}", way.distance, ".3f"))
        lines.append((f"  distance when written, {names[way.way]}", way.round_trip, ".3f"))
        lines.append((f"  coherence, {names[way.way]}", way.coherence, ".3f"))
        lines.append((f"  its standard error, {names[way.way]}", way.coherence_error, ".3f"))
    lines.append(("coherence of the sentence itself", figures.own_coherence, ".3f"))
    return [
        *(line for line in lines if line[1] is not None),
        ("distance of the sentence itself when written", figures.own_round_trip, ".3f"),
        ("likeness to what was said, against the sentence's", figures.paraphrase, ".2f"),
        ("sentences", figures.sentences, ",d"),
        ("  written", figures.written, ",d"),
    ]


TABLES: dict[str, tuple[str, Callable[[Any], list[Line]]]] = {
    "likelihood": ("Likelihood", likelihood_lines),
    "context": ("Use of context: predicting a sentence after more or fewer of those before it", context_lines),
    "needle": ("A fact stated some sentences ago", needle_lines),
    "writing": ("Writing: samples that continue the documents", writing_lines),
    "brier": ("BrierLM: samples of the next tokens", brier_lines),
    "reconstruction": ("Reconstruction: sentences written back from their latents", reconstruction_lines),
    "shortlist": ("Shortlist: whether the text is on the lists", shortlist_lines),
    "latent_prediction": ("Latents of the next sentence, foretold", latent_prediction_lines),
    "parallel": ("Sentences by themselves, from latents predicted so far ahead", parallel_lines),
}
