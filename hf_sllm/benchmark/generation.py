"""Reading a text and writing on, timed: transformers' `generate` of an SLLM and of its bare backbone, by turns.

Weights may be random: whatever the models say, sentences close after so many tokens, on both sides by the same means.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    CompileConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from .memory import PeakMemory, bytes_held
from .shapes import BOUNDARY


@dataclass(frozen=True)
class Side:
    """A model, and how it is asked to write.

    Attributes:
        name: What it is called in tables.
        model: Either kind.
        options: Arguments of its `generate`.
    """

    name: str
    model: PreTrainedModel
    options: dict[str, Any]

    @property
    def sentences_at_once(self) -> int:
        return self.options.get("sentences_at_once", 1)

    @property
    def is_compiled(self) -> bool:
        return "compile_config" in self.options


def make_sides(
    backbone: PreTrainedModel,
    sllm: PreTrainedModel,
    compiled: bool = False,
    shortlist_size: int | None = None,
    sentences_at_once: int = 1,
) -> list[Side]:
    """The backbone's eager loop, on request its compiled one with a static cache, and the SLLM's sentence loop, on
    request with a shortlist, or with several sentences at once."""
    sides = [Side("backbone", backbone, {})]
    if compiled:
        config = CompileConfig()
        # transformers 5.23 compiles a static cache's steps on accelerators only, unless this says otherwise.
        config._compile_all_devices = True  # type: ignore[assignment]
        options = {"cache_implementation": "static", "compile_config": config}
        sides.append(Side("backbone, compiled", backbone, options))
    listed = {} if shortlist_size is None else {"shortlist_size": shortlist_size}
    if sentences_at_once > 1:
        listed["sentences_at_once"] = sentences_at_once
    return [*sides, Side("SLLM", sllm, {"max_sentences": math.inf, **listed})]


@dataclass
class Figures:
    """What was measured of one side, at one length of context and one size of batch.

    Attributes:
        prefill_seconds: For each run: the forward pass over the context, with a cache, and logits of its last
            position.
        first_sentence_seconds: For each run: from the call of `generate` until every row has a sentence more, or as
            many more as are written at once.
        tokens_per_second: For each run: tokens of all rows after that sentence, over the time they took.
        cache_bytes: What the cache holds after the prefill.
        peak_bytes: The weights, and the most that was alive beside them while the context was read and a sentence
            written; None for compiled code, of which only CUDA knows.
    """

    prefill_seconds: list[float] = field(default_factory=list)
    first_sentence_seconds: list[float] = field(default_factory=list)
    tokens_per_second: list[float] = field(default_factory=list)
    cache_bytes: int = 0
    peak_bytes: int | None = None


def measure_generation(
    sides: Sequence[Side], token_ids: torch.Tensor, sentence_length: int, new_tokens: int, runs: int = 5
) -> list[Figures]:
    """Lets all sides read the same text and write on, one after the other, in each run anew.

    A round before them does not count, in which is compiled what is to be; after them memory is measured.

    Args:
        token_ids: `(batch, length)`, see `random_text`.
        sentence_length: Tokens of each sentence, read or written.
        new_tokens: How many tokens each row is to get.
        runs: How many times each side is timed.

    Returns:
        For each side.

    Raises:
        ValueError: If the text or what is written does not consist of whole sentences, two of them written at least.
    """
    most_at_once = max(side.sentences_at_once for side in sides)
    check_lengths(token_ids.shape[1], sentence_length, new_tokens, most_at_once)
    found = [Figures() for _ in sides]
    if any(side.is_compiled for side in sides):
        torch.compiler.reset()  # what was compiled for other lengths is not specialised to these
    for run in range(runs + 1):
        for side, figures in zip(sides, found, strict=True):
            clock = Clock(side.model)
            write(side, token_ids, sentence_length, new_tokens, clock)
            if run == 0:
                continue
            prompt = token_ids.shape[1]
            first = sentence_length * side.sentences_at_once
            rest = clock.between(prompt + first, prompt + new_tokens)
            figures.prefill_seconds.append(clock.between("prefill begins", "prefill ends"))
            figures.first_sentence_seconds.append(clock.between("begins", prompt + first))
            figures.tokens_per_second.append(len(token_ids) * (new_tokens - first) / rest)
    for side, figures in zip(sides, found, strict=True):
        measure_memory(side, token_ids, sentence_length, figures)
    return found


def check_lengths(context_length: int, sentence_length: int, new_tokens: int, sentences_at_once: int = 1) -> None:
    """Refuses what does not consist of whole sentences: the sides would then not close as many."""
    round_length = sentence_length * sentences_at_once
    for name, length, unit, least in (
        ("context_length", context_length, sentence_length, sentence_length),
        ("new_tokens", new_tokens, round_length, 2 * round_length),
    ):
        if length % unit or length < least:
            raise ValueError(
                f"`{name}` is {length}: it must be a multiple of `sentence_length`, {sentence_length}, and at least "
                f"{least}{'' if sentences_at_once == 1 else f', in whole rounds of {unit} tokens'}."
            )


def measure_memory(side: Side, token_ids: torch.Tensor, sentence_length: int, figures: Figures) -> None:
    """Fills in the figures that are bytes."""
    unseen = side.is_compiled and token_ids.device.type != "cuda"
    # The step after the sentence's last token is where an SLLM runs its backbone. The prefill is never compiled.
    new_tokens = 1 if unseen else sentence_length * side.sentences_at_once + 1
    clock = Clock(side.model, weighs_cache=True)
    if unseen:
        write(side, token_ids, sentence_length, new_tokens, clock)
    else:
        with PeakMemory(side.model, token_ids.device) as peak:
            write(side, token_ids, sentence_length, new_tokens, clock)
        weights = [*side.model.parameters(), *side.model.buffers()]
        figures.peak_bytes = peak.bytes + bytes_held(weights)
    figures.cache_bytes = clock.cache_bytes


def write(
    side: Side, token_ids: torch.Tensor, sentence_length: int, new_tokens: int, clock: "Clock"
) -> torch.LongTensor:
    """`(batch, length + new_tokens)`: the text and what comes after it, in sentences of one length."""
    eos = side.model.generation_config.eos_token_id
    ends = [] if eos is None else [eos] if isinstance(eos, int) else eos
    closing = SentenceLength(sentence_length, [BOUNDARY, *ends], token_ids.device)
    with clock.watches_prefill():
        clock.mark("begins")
        written = side.model.generate(  # type: ignore[operator]
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            logits_processor=LogitsProcessorList([closing]),
            stopping_criteria=StoppingCriteriaList([clock]),
            pad_token_id=0,  # no row is padded, but generation wants to know
            **side.options,
        )
    expected = (len(token_ids), token_ids.shape[1] + new_tokens)
    if written.shape != expected or not torch.equal(written == BOUNDARY, closing.schedule(written)):
        raise RuntimeError(f"{side.name} did not write {new_tokens} tokens in sentences of {sentence_length}.")
    return written


class SentenceLength(LogitsProcessor):
    """Closes sentences after so many tokens of the text, and never before, whatever the logits are.

    Args:
        length: Of each sentence, counted from the begin of the text.
        forbidden: Tokens that close a sentence or end a text; the first of them closes each sentence.
    """

    def __init__(self, length: int, forbidden: list[int], device: torch.device):
        self.length = length
        self.forbidden = torch.tensor(forbidden, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`(batch, vocab)` scores of the token that follows `(batch, length)` ids."""
        if (input_ids.shape[1] + 1) % self.length:
            return scores.index_fill(1, self.forbidden, -math.inf)
        return torch.full_like(scores, -math.inf).index_fill_(1, self.forbidden[:1], 0.0)

    def schedule(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Which of the `(batch, length)` tokens close a sentence."""
        position = torch.arange(1, token_ids.shape[1] + 1, device=token_ids.device)
        return (position % self.length == 0).expand_as(token_ids)


class Clock(StoppingCriteria):
    """Notes when the text had which length, and when the prefill was; it stops nothing.

    On CUDA it notes events on the stream, which are read at the end, so that nothing waits for it.

    Args:
        weighs_cache: Whether to count the bytes of the cache after the prefill, which takes time.
    """

    def __init__(self, model: PreTrainedModel, weighs_cache: bool = False):
        self.model = model
        self.weighs_cache = weighs_cache
        self.cache_bytes = 0
        self.marks: dict[str | int, Any] = {}

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        self.mark(input_ids.shape[1])
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]

    def mark(self, name: str | int) -> None:
        """Now it begins, or now the rows have so many tokens."""
        if name in self.marks:
            return
        if self.model.device.type == "cuda":
            self.marks[name] = torch.cuda.Event(enable_timing=True)
            self.marks[name].record()
        else:
            self.marks[name] = time.perf_counter()

    def between(self, first: str | int, last: str | int) -> float:
        """Seconds between two marks."""
        begin, end = self.marks[first], self.marks[last]
        if self.model.device.type != "cuda":
            return end - begin
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    @contextmanager
    def watches_prefill(self) -> Iterator[None]:
        """Within it, the model's first forward pass is the prefill."""
        hooks = [
            self.model.register_forward_pre_hook(lambda module, args: self.mark("prefill begins")),
            self.model.register_forward_hook(lambda module, args, output: ended(output)),
        ]

        def ended(output: Any) -> None:
            self.mark("prefill ends")
            if self.weighs_cache:
                self.cache_bytes = bytes_held(output.past_key_values)
            unhook()  # the steps that follow run, and are compiled, as without us

        def unhook() -> None:
            for hook in hooks:
                hook.remove()

        try:
            yield
        finally:
            unhook()
