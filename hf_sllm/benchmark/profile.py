"""Where the time of a token goes: to the decoder, the LM head, the backbone, the encoder, or what lies between them.

The same random pair as in the benchmark of generation, in sentences of one length; each part is timed by hooks, and
every moment counts for exactly one part.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from transformers import PreTrainedModel

from hf_sllm.modeling.token_shortlist import ShortlistedHead

from .generation import Clock, Side, write
from .operations import OperationMode
from .tables import table_of

aten = torch.ops.aten

# What is no part: choosing tokens, laying out sentences, masks, embeddings, the maps to and from latents, the cache's
# bookkeeping, and the loop itself.
REST = "rest"
PARTS = ("decoder", "LM head", "backbone", "encoder", REST)


@dataclass
class Profile:
    """One way of writing.

    Attributes:
        name: What it is called.
        seconds: For each token of each row, by part: the median over the runs.
        calls: Of each part but the rest, for each token of a row.
        operations: Of torch, but for views, for each token of a row, by part. Where nothing is compiled, each is a
            kernel or more on a GPU.
    """

    name: str
    seconds: dict[str, float]
    calls: dict[str, float]
    operations: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


@dataclass
class ProfileReport:
    """A run of the command.

    Attributes:
        settings: What was asked for.
        decoder_layers: Of the SLLM.
        device, threads: Where it ran; torch's threads within an operation.
        versions: Of what computed it.
        profiles: Of the backbone, and of the SLLM in each way.
    """

    settings: dict[str, Any]
    decoder_layers: int
    device: str
    threads: int
    versions: dict[str, str]
    profiles: list[Profile]

    def save(self, file: Path) -> None:
        """As JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")


def profile_sides(
    sides: Sequence[Side],
    token_ids: torch.Tensor,
    sentence_length: int,
    new_tokens: int,
    runs: int = 5,
    progress: bool = True,
) -> list[Profile]:
    """Lets all sides write on by turns, and says for each what its parts took.

    As for tokens per second, what counts is from the end of the first new sentence to the last token. In a round
    before, operations are counted, and nothing is timed.

    Args:
        token_ids: `(batch, length)`, see `random_text`.
    """
    tokens = new_tokens - sentence_length
    prompt = token_ids.shape[1]
    clocks: list[list[PartClock]] = [[] for _ in sides]
    for run in track(range(runs + 1), "Profiling by turns", console=Console(stderr=True), disable=not progress):
        for side, own in zip(sides, clocks, strict=True):
            clock = PartClock(side.model, prompt + sentence_length, prompt + new_tokens)
            counting = OperationCounter(clock) if run == 0 else nullcontext()
            with clock.watches_parts(), counting:
                write(side, token_ids, sentence_length, new_tokens, clock)
            own.append(clock)
    return [
        Profile(
            side.name,
            {
                part: statistics.median(clock.seconds[part] for clock in own[1:]) / (len(token_ids) * tokens)
                for part in PARTS
            },
            {part: own[0].calls[part] / tokens for part in PARTS if part != REST},
            {part: own[0].operations[part] / tokens for part in PARTS},
        )
        for side, own in zip(sides, clocks, strict=True)
    ]


class PartClock(Clock):
    """A clock that also adds up what each part of a model takes while the rows grow from one length to another.

    On CUDA it waits for the device at each change of part: so the parts are told apart, and the whole is slower than
    without the clock.
    """

    def __init__(self, model: PreTrainedModel, first: int, last: int):
        super().__init__(model)
        self.first, self.last = first, last
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.calls = dict.fromkeys(PARTS, 0)
        self.operations = dict.fromkeys(PARTS, 0)
        self._within = [REST]  # the part that runs, after those that called it
        self._since = 0.0
        self._counts = False

    def mark(self, name: str | int) -> None:
        super().mark(name)
        if name in (self.first, self.last):
            self._settle()
            self._counts = name == self.first

    @contextmanager
    def watches_parts(self) -> Iterator[None]:
        """Within it, time counts for the parts."""
        listed = ShortlistedHead.logits

        def logits(head: ShortlistedHead, *args: torch.Tensor) -> torch.Tensor:
            self._enter("LM head")
            found = listed(head, *args)
            self._leave()
            return found

        with ExitStack() as stack:
            stack.enter_context(patch.object(ShortlistedHead, "logits", logits))  # it is no module
            for part, module in modules_of(self.model).items():
                # Bound as defaults: a loop's variable would be the last one for all of them.
                enter = module.register_forward_pre_hook(lambda *_, part=part: self._enter(part))
                leave = module.register_forward_hook(lambda *_: self._leave())
                stack.callback(enter.remove)
                stack.callback(leave.remove)
            yield

    def count_operation(self) -> None:
        """One more, of the part that runs."""
        self.operations[self._within[-1]] += self._counts

    def _enter(self, part: str) -> None:
        self._settle()
        self._within.append(part)
        self.calls[part] += self._counts

    def _leave(self) -> None:
        self._settle()
        self._within.pop()

    def _settle(self) -> None:
        """Books the time since the last change."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._counts:
            self.seconds[self._within[-1]] += now - self._since
        self._since = now


class OperationCounter(OperationMode):
    """Within it, torch's operations count for the parts of a clock. Views do nothing, and do not count."""

    def __init__(self, clock: PartClock):
        super().__init__()
        self.clock = clock

    def run(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if not operation.is_view and operation not in (aten._unsafe_view.default, aten.detach_.default):
            self.clock.count_operation()
        return operation(*args, **kwargs)


def modules_of(model: Any) -> dict[str, nn.Module]:
    """The modules that are timed, by part. Of the encoder and the decoder it is all of the first and the layers of the
    second, which is called in several ways."""
    if model.config.model_type != "sllm":
        return {"backbone": model.base_model, "LM head": model.get_output_embeddings()}
    return {
        "decoder": model.model.sentence_decoder.model,
        "LM head": model.lm_head,
        "backbone": model.model.language_model,
        "encoder": model.model.sentence_encoder,
    }


def print_profile(found: ProfileReport, console: Console) -> None:
    """Milliseconds of each part for a token, its share, how often it is called, and its operations."""
    settings = found.settings
    console.print(
        f"{settings['shapes']}, {settings['dtype']}, {found.device}, {found.threads} threads, decoder of "
        f"{found.decoder_layers} layers, {settings['batch_size']} x {settings['context_length']} tokens of context, "
        f"sentences of {settings['sentence_length']}, lists of {settings['shortlist_size']} tokens, "
        f"median of {settings['runs']} runs",
        highlight=False,
    )
    names = [profile.name for profile in found.profiles]
    times = table_of("Milliseconds for a token", *names)
    calls = table_of("Calls for a token", *names)
    operations = table_of("Operations for a token", *names)
    for part in PARTS:
        shares = [(profile.seconds[part], profile.total) for profile in found.profiles]
        times.add_row(part, *(f"{own * 1e3:.3f} {own / total:4.0%}" if own else "" for own, total in shares))
        counts = [profile.operations[part] for profile in found.profiles]
        operations.add_row(part, *(f"{count:.1f}" if count else "" for count in counts))
        if part != REST:
            counts = [profile.calls[part] for profile in found.profiles]
            calls.add_row(part, *(f"{count:.3g}" if count else "" for count in counts))
    times.add_row("all", *(f"{profile.total * 1e3:.3f}     " for profile in found.profiles))
    operations.add_row("all", *(f"{sum(profile.operations.values()):.1f}" for profile in found.profiles))
    console.print(times, calls, operations)
