"""What may come next, by a model's own account: many sentences predicted after one text, written and drawn.

`matplotlib` is needed only where a figure is drawn, and is imported there.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from hf_sllm.evaluation.loop import evaluation_mode
from hf_sllm.modeling import SllmCache

from .sample import whole_sentences

# What is written most often has a colour of its own in the picture.
COLOURS = 9


@dataclass(frozen=True)
class SentenceFutures:
    """The sentences that a model expects after a text.

    Attributes:
        said: The sentences of the text.
        written: Each future, written from its latents alone.
        latents: `(futures, units)` from which it was written.
        said_latents: `(sentences, units)` of the text's own.
        true: The sentence that does follow, if it was told.
        true_latents: `(units,)` of it.
    """

    said: tuple[str, ...]
    written: tuple[str, ...]
    latents: torch.Tensor
    said_latents: torch.Tensor
    true: str | None = None
    true_latents: torch.Tensor | None = None

    @property
    def counts(self) -> list[tuple[str, int]]:
        """What is written how often, the most frequent first."""
        return Counter(self.written).most_common()


@torch.no_grad()
def sentence_futures(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    count: int = 100,
    following: str | None = None,
    seed: int = 0,
) -> SentenceFutures:
    """Predicts the next sentence of a text many times, and writes each prediction from its latents alone.

    Args:
        model: An SLLM. One that does not sample its latents has a single future.
        tokenizer: Its own.
        text: Some sentences; the last one may be open, and is then left out.
        count: How many futures.
        following: The sentence that does follow.
        seed: Of the first future; the others have the next ones.

    Raises:
        ValueError: If the model is no SLLM, or something is missing.
    """
    if count < 1:
        raise ValueError(f"`count` is {count}: it must be at least 1.")
    with evaluation_mode(model):
        said, latents = _sentences(model, tokenizer, text)
        true, true_latents = None, None
        if following is not None:
            sentences, own = _sentences(model, tokenizer, f"{text} {following}")
            if len(sentences) != len(said) + 1:
                raise ValueError(f"`following` is {following!r}: it must be one whole sentence after `text`.")
            true, true_latents = sentences[-1], own[0, -1].flatten().cpu()
        count = count if model.config.samples_latents else 1
        cache = SllmCache(model.config)
        cache.latent_seeds = torch.arange(seed, seed + count, device=model.device)
        predicted = model.predict_next_latents(latents.expand(count, -1, -1, -1).contiguous(), cache=cache)[:, -1]
        written = [_text(tokenizer, ids) for ids in model.decode_latents(predicted)]
        return SentenceFutures(
            tuple(said), tuple(written), predicted.flatten(1).cpu(), latents[0].flatten(1).cpu(), true, true_latents
        )


def _sentences(model: Any, tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[str], torch.Tensor]:
    """The whole sentences of a text, and their latents `(1, sentences, num_latents, latent_size)`."""
    given = whole_sentences(model, tokenizer, text)
    parts = pairwise([0, *given.ends])
    return [_text(tokenizer, given.token_ids[begin:end]) for begin, end in parts], given.latents


def _text(tokenizer: PreTrainedTokenizerBase, ids: Any) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def print_futures(found: SentenceFutures, console: Console) -> None:
    """A table of what is written, and how often."""
    table = Table(box=SIMPLE_HEAD, title_justify="left", title=f"after: {found.said[-1]}")
    table.add_column("times", justify="right")
    table.add_column("what comes next")
    for text, times in found.counts:
        table.add_row(str(times), text, style="green" if text == found.true else None)
    console.print(table)
    if found.true is not None:
        console.print(f"what does come: {found.true}", highlight=False)


def plot_futures(found: SentenceFutures, path: Path) -> None:
    """Draws futures, the text's own sentences and the true one on the plane in which they differ most.

    Raises:
        ImportError: If `matplotlib` is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('drawing needs `matplotlib`: pip install "hf-sllm[train]"') from error

    parts = [found.latents, found.said_latents, *([] if found.true_latents is None else [found.true_latents[None]])]
    points = torch.cat(parts).float()
    centred = points - points.mean(0)
    plane = centred @ torch.linalg.svd(centred, full_matrices=False)[2][:2].T  # (points, at most 2)
    plane = torch.nn.functional.pad(plane, (0, 2 - plane.shape[1]))
    futures, said = plane[: len(found.latents)], plane[len(found.latents) :]
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()

    def dots(points: torch.Tensor, **style: Any) -> None:
        axes.scatter(points[:, 0].tolist(), points[:, 1].tolist(), **style)

    dots(said[: len(found.said)], color="lightgray", marker="s", label="said before")
    for text, times in found.counts[:COLOURS]:
        of_text = torch.tensor([one == text for one in found.written])
        dots(futures[of_text], s=14, label=f"{times} x {shortened(text)}")
    frequent = {text for text, _ in found.counts[:COLOURS]}
    others = torch.tensor([one not in frequent for one in found.written])
    if others.any():
        dots(futures[others], s=14, color="black", label=f"{int(others.sum())} x others")
    if found.true is not None:
        dots(said[-1:], color="red", marker="*", s=160, label=f"true: {shortened(found.true)}")
    axes.set(
        xlabel="first principal axis", ylabel="second principal axis", title=f"after: {shortened(found.said[-1])}"
    )
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    figure.savefig(path)


def shortened(text: str, most: int = 40) -> str:
    """The begin of a sentence, where all of it has no room; `$` would begin a formula."""
    text = text.replace("$", r"\$")
    return text if len(text) <= most else f"{text[: most - 1]}…"


__all__ = ["SentenceFutures", "plot_futures", "print_futures", "sentence_futures"]
