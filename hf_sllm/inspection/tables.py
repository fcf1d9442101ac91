"""What was found, as tables, and the findings below them."""

import math

from rich.console import Console
from rich.table import Table

from .findings import TASKS, findings
from .latents import NOISE, NOISY, NOISY_BEFORE, TRUE
from .results import LatentHealth, reading_of
from .scores import Reading, Score


def print_latents(health: LatentHealth, title: str, console: Console) -> None:
    """Prints the tables, and below them the findings."""
    console.print(table_of_units(health, title))
    console.print(table_of_noise(health))
    for task, name in TASKS.items():
        readings: list[Reading] = getattr(health, task)
        if readings:
            console.print(table_of_use(readings, name))
    if not health.reconstruction:
        console.print("No reconstruction: with `reconstruction_weight` 0 the model never learned it.", style="dim")
    for finding in findings(health):
        console.print(finding, style="bold", highlight=False)


def table_of_units(health: LatentHealth, title: str) -> Table:
    """What the latents hold."""
    table = Table(title=f"{title}: {health.sentences:,} sentences, {health.tokens:,} tokens", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    units = len(health.variance)
    table.add_row("units", f"{health.num_latents} x {health.latent_size} = {units}")
    table.add_row("active units", str(health.active_units))
    table.add_row("effective dimension", f"{health.effective_dimension:.1f}")
    deviations = sorted(math.sqrt(variance) for variance in health.variance)
    table.add_row(
        "standard deviation of a unit: least, median, most",
        ", ".join(f"{deviations[index]:.3g}" for index in (0, units // 2, -1)),
    )
    if health.kl is None:
        table.add_row("KL", "none: latents are points, not Gaussians")
    else:
        table.add_row("KL per sentence, nats", f"{sum(health.kl):.2f}")
        table.add_row("KL per sentence, bits", f"{sum(health.kl) / math.log(2):.2f}")
        table.add_row("KL per unit, nats: least, mean, most", spread(health.kl, 1.0))
        table.add_row("KL per unit, bits: least, mean, most", spread(health.kl, 1 / math.log(2)))
    return table


def spread(values: list[float], scale: float) -> str:
    """The least, the mean and the greatest of some values."""
    return ", ".join(f"{scale * value:.3g}" for value in (min(values), sum(values) / len(values), max(values)))


def table_of_noise(health: LatentHealth) -> Table:
    """What is left under noise."""
    most = math.log2(health.sentences)
    table = Table(
        title="Noise on each unit, in its standard deviations",
        caption=f"bits: mutual information of sentence and latents; at most {health.entropy:.2f} on this sample "
        f"(log2 of its {health.sentences:,} sentences is {most:.2f})",
    )
    columns = [("reconstruction", NOISY), ("next_sentence", NOISY), ("next_sentence", NOISY_BEFORE)]
    columns = [(task, name) for task, name in columns if getattr(health, task)]
    headers = {
        ("reconstruction", NOISY): ["nats", "accuracy", "written", "exact"],
        ("next_sentence", NOISY): ["nats, noise on predictions"],
        ("next_sentence", NOISY_BEFORE): ["nats, noise before the backbone"],
    }
    for header in ("noise", "bits", *(header for column in columns for header in headers[column])):
        table.add_column(header, justify="right")
    bits = {row.noise: row.bits for row in health.information}
    for noise in (0.0, *NOISE):
        cells = [f"{bits[noise]:.2f}" if noise in bits else ""]
        for task, name in columns:
            reading = reading_of(getattr(health, task), name if noise else TRUE, noise)
            score = None if reading is None else reading.whole
            cells += score_cells(score) if task == "reconstruction" else score_cells(score)[:1]
        table.add_row(f"{noise:g}", *cells)
    return table


def score_cells(score: Score | None) -> list[str]:
    """Nats, accuracy, and what was written."""
    if score is None:
        return [""] * 4
    shares = (score.accuracy, score.written, score.exact)
    return [f"{score.nats:.3f}", *("" if share is None else f"{share:.1%}" for share in shares)]


def table_of_use(readings: list[Reading], task: str) -> Table:
    """What each kind of latents is worth: for all tokens, by position in the sentence and by its length."""
    chosen = [reading for reading in readings if reading.noise == 0]  # the true ones come first
    true = chosen[0]
    writes = true.whole.written is not None
    table = Table(title=f"{task.capitalize()}: nats per token, with latents…")
    table.add_column("", no_wrap=True)
    headers = [reading.latents for reading in chosen]
    for header in ("tokens", *headers, *(["accuracy", "written", "exact"] if writes else ["accuracy"])):
        table.add_column(header, justify="right")

    def add(label: str, scores: list[Score], end: bool = False) -> None:
        shares = score_cells(scores[0])[1 : 4 if writes else 2]
        cells = [f"{scores[0].tokens:,}", *(f"{score.nats:.3f}" for score in scores), *shares]
        table.add_row(label, *cells, end_section=end)

    add("all", [reading.whole for reading in chosen], end=True)
    for position in true.by_position:
        add(f"position {position}", [reading.by_position[position] for reading in chosen])
    table.add_section()
    for length in true.by_length:
        add(f"length {length}", [reading.by_length[length] for reading in chosen])
    return table
