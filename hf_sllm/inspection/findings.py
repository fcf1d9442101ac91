"""What is wrong with a model's latents, in plain words."""

from collections.abc import Iterator

from .latents import AFTER_OTHER, DRAWN, HIDDEN, NOISE, NOISY, NOISY_BEFORE, OTHER, OTHER_MEMORY, START, TRUE
from .results import LatentHealth
from .scores import Reading

# What the findings call few, little and much.
FEW_UNITS = 0.1  # of the units
FEW_DIRECTIONS = 2.0
NO_DIFFERENCE = 0.01  # of the loss
SHARP_FALL = 0.1  # of what was right, or of what the latents are worth

TASKS = {"reconstruction": "reconstruction", "next_sentence": "next sentence"}


def findings(health: LatentHealth) -> list[str]:
    """What is wrong, in plain words; that nothing is, if so."""
    wrong = [*wrong_with_units(health), *wrong_with_use(health)]
    return wrong or ["No sign of collapse, and none of brittle latents."]


def wrong_with_units(health: LatentHealth) -> Iterator[str]:
    """Whether the latents hold little."""
    units = len(health.variance)
    if health.active_units == 0:
        yield f"Posterior collapse: none of the {units} units varies from sentence to sentence."
        return
    if health.active_units < FEW_UNITS * units:
        yield f"Partial collapse: {health.active_units} of {units} units vary from sentence to sentence."
    if health.effective_dimension < FEW_DIRECTIONS < units:
        yield (
            f"Low rank: {health.active_units} units are active, but with an effective dimension of "
            f"{health.effective_dimension:.1f} they nearly all say the same."
        )


def wrong_with_use(health: LatentHealth) -> Iterator[str]:
    """Whether the text hardly depends on the latents, or depends on their last digits."""
    for task, title in TASKS.items():
        readings = {(reading.latents, reading.noise): reading for reading in getattr(health, task)}
        if not readings:
            continue
        nats = {latents: reading.whole.nats for (latents, noise), reading in readings.items() if noise == 0}
        # What the means of wide Gaussians tell is lost on a decoder that was trained on draws.
        own = DRAWN if DRAWN in nats else TRUE
        least = NO_DIFFERENCE * nats[own]
        if OTHER_MEMORY not in nats and min(nats[HIDDEN], nats[OTHER]) - nats[own] < least:
            yield (
                f"Unused latents ({title}): {nats[own]:.3f} nats per token with them, {nats[HIDDEN]:.3f} with them "
                f"hidden, {nats[OTHER]:.3f} with those of another text."
            )
            continue
        # With a memory, the sentence level is what is predicted and what is remembered.
        alternatives = (OTHER_MEMORY,) if OTHER_MEMORY in nats else (HIDDEN, OTHER, AFTER_OTHER, START)
        replaced = [latents for latents in alternatives if latents in nats]
        worth = min(nats[latents] for latents in replaced) - nats[own]
        if worth < least:
            if OTHER_MEMORY in nats:
                yield (
                    f"Unused memory ({title}): {nats[own]:.3f} nats per token, {nats[OTHER_MEMORY]:.3f} with latents "
                    "and memory of another text."
                )
                continue
            yield (
                f"Unread sentences ({title}): {nats[own]:.3f} nats per token, {nats[AFTER_OTHER]:.3f} if the "
                f"backbone has read as many sentences of other texts, {nats[START]:.3f} if it has read none."
            )
            continue
        later = {latents: nats_after_first(readings[latents, 0.0]) for latents in (own, *replaced)}
        best = min(replaced, key=lambda latents: later[latents])
        if later[best] - later[own] < NO_DIFFERENCE * later[own]:
            yield (
                f"First token only ({title}): from a sentence's second token on {later[own]:.3f} nats per token, and "
                f"{later[best]:.3f} with latents {best}."
            )
        yield from wrong_under_noise(readings, title, worth)


def nats_after_first(reading: Reading) -> float:
    """Nats per token of those that are not the first of their sentences; 0 if there are none."""
    scores = [score for position, score in reading.by_position.items() if position != "1"]
    return sum(score.nats * score.tokens for score in scores) / max(sum(score.tokens for score in scores), 1)


def wrong_under_noise(readings: dict[tuple[str, float], Reading], title: str, worth: float) -> Iterator[str]:
    """Whether the least noise already spoils what a task makes of latents that are worth so many nats per token."""
    least = min(NOISE)
    true = readings[TRUE, 0.0].whole
    for latents in (NOISY, NOISY_BEFORE):
        if (latents, least) not in readings:
            continue
        noisy = readings[latents, least].whole
        if true.written is None or noisy.written is None:
            lost, what = (noisy.nats - true.nats) / worth, "of what the latents are worth is"
        else:
            lost, what = 1 - noisy.written / max(true.written, 1e-9), "of the tokens written right are"
        if lost > SHARP_FALL:
            yield f"Brittle latents ({title}, {latents} of {least} standard deviations): {lost:.0%} {what} lost."
