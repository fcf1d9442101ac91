"""Drafting, timed: a backbone writes its own text, and an SLLM, or the text so far, guesses several tokens ahead.

The backbone reads a draft in one pass and keeps of it what it would have written itself (Leviathan et al. 2023, arXiv
2211.17192), so nothing is lost: greedy text is the same, and sampled text has the same distribution.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from .tables import table_of

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Way:
    """A way for the backbone to write.

    Attributes:
        name: What it is called in tables.
        options: Arguments of the backbone's `generate`.
        draft: Fields of the assistant's generation config.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    draft: dict[str, Any] = field(default_factory=dict)


def make_ways(
    assistant: PreTrainedModel,
    thresholds: Sequence[float] = (0.0, 0.4),
    draft_tokens: int | None = None,
    lookup_tokens: int = 10,
) -> list[Way]:
    """Without drafts; with drafts from the text so far; with those of an assistant, for each threshold.

    Args:
        assistant: An SLLM, whose drafts end with their sentence at the latest, or any other model.
        thresholds: A draft ends with the first token less likely than this; at 0 none is.
        draft_tokens: The longest draft; by default the longest sentence, or 20 tokens of a model without sentences.
        lookup_tokens: The longest draft from the text so far; 0 to leave this way out.

    Raises:
        ValueError: If a number is out of range.
    """
    is_sllm = assistant.config.model_type == "sllm"
    longest = (assistant.config.max_sentence_length if is_sllm else 20) if draft_tokens is None else draft_tokens
    for name, value, least in (("draft_tokens", longest, 1), ("lookup_tokens", lookup_tokens, 0)):
        if value < least:
            raise ValueError(f"`{name}` is {value}: it must be at least {least}.")
    ways = [Way("no drafts")]
    if lookup_tokens:
        ways.append(Way("prompt look-up", {"prompt_lookup_num_tokens": lookup_tokens}))
    for threshold in thresholds:
        if not 0 <= threshold < 1:
            raise ValueError(f"`thresholds` has {threshold}: a probability is meant, from 0 to below 1.")
        draft = {
            "num_assistant_tokens": longest,
            "num_assistant_tokens_schedule": "constant",
            "assistant_confidence_threshold": threshold,
        }
        name = "SLLM" if is_sllm else "assistant"
        name += f", while p is at least {threshold:g}" if threshold else ", whole drafts"
        ways.append(Way(name, {"assistant_model": assistant}, draft))
    return ways


@dataclass
class Drafted:
    """How the backbone wrote in one way, all prompts together.

    Attributes:
        way: Its name.
        tokens: Written, for each prompt.
        seconds: From the call of `generate` to its end, the reading of the prompt included, for each prompt.
        passes: Forward passes of the backbone, that over the prompt included.
        drafted: Tokens drafted.
        identical: Prompts after which the text is that written without drafts.
    """

    way: str
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    passes: int = 0
    drafted: int = 0
    identical: int = 0

    @property
    def tokens_per_pass(self) -> float:
        """Accepted tokens, and the one that each pass adds of its own: 1 without drafts."""
        return sum(self.tokens) / self.passes

    @property
    def accepted(self) -> float | None:
        """Share of the drafted tokens that were kept."""
        return (sum(self.tokens) - self.passes) / self.drafted if self.drafted else None

    @property
    def tokens_per_second(self) -> float:
        return sum(self.tokens) / sum(self.seconds)

    def times_as_fast_as(self, other: "Drafted") -> float:
        """The median over the prompts of the ratio of tokens per second."""
        own, others = (
            [tokens / seconds for tokens, seconds in zip(one.tokens, one.seconds, strict=True)]
            for one in (self, other)
        )
        return statistics.median(fast / slow for fast, slow in zip(own, others, strict=True))


def measure_drafting(
    backbone: PreTrainedModel,
    ways: Sequence[Way],
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    sample: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> list[Drafted]:
    """Lets a backbone go on from each prompt in all ways, one after the other.

    The first prompt is gone on from once before, in all ways, which does not count.

    Args:
        ways: The first of them is without drafts; see `make_ways`.
        prompts: Token ids of each.
        new_tokens: Write so many tokens, or up to the end of the text.
        sample: Draw each token, rather than take the likeliest one.
        seed: Of the drawing; the same for each way.
        progress: Whether to show a progress bar, on standard error.

    Returns:
        For each way.
    """
    for way in ways:
        write(backbone, way, prompts[0], new_tokens, sample, Drafted(way.name))
    found = [Drafted(way.name) for way in ways]
    rounds = track(range(len(prompts)), "Drafting by turns", console=Console(stderr=True), disable=not progress)
    for index in rounds:
        texts = []
        for way, drafted in zip(ways, found, strict=True):
            set_seed(seed + index)
            texts.append(write(backbone, way, prompts[index], new_tokens, sample, drafted))
            drafted.identical += texts[-1] == texts[0]
    return found


def write(
    backbone: PreTrainedModel, way: Way, prompt: Sequence[int], new_tokens: int, sample: bool, drafted: Drafted
) -> list[int]:
    """The token ids that follow a prompt; what it took is added to `drafted`."""
    if "assistant_model" in way.options:
        way.options["assistant_model"].generation_config.update(**way.draft)
    token_ids = torch.tensor([list(prompt)], device=backbone.device)
    with counted_passes(backbone, len(prompt), drafted):
        begun = time.perf_counter()
        written = backbone.generate(  # type: ignore[operator]
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            max_new_tokens=new_tokens,
            do_sample=sample,
            pad_token_id=0,  # no row is padded, but generation wants to know
            **way.options,
        )
        text = written[0, len(prompt) :].tolist()
        drafted.seconds.append(time.perf_counter() - begun)
    drafted.tokens.append(len(text))
    return text


@contextmanager
def counted_passes(backbone: PreTrainedModel, prompt_length: int, drafted: Drafted) -> Iterator[None]:
    """Within it the passes of a backbone are counted, and the drafted tokens that it reads in them."""
    before = drafted.passes

    def count(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        known = prompt_length if drafted.passes == before else 1  # the prompt, or the last token that was kept
        drafted.drafted += kwargs["input_ids"].shape[1] - known
        drafted.passes += 1

    hook = backbone.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@dataclass
class DraftingReport:
    """A run of the benchmark.

    Attributes:
        backbone, assistant: Their paths or names.
        data: Where the prompts come from.
        settings: What else was asked for.
        prompts: How many.
        prompt_tokens: Of all of them.
        device, threads: Where it ran; torch's threads within an operation.
        versions: Of what computed it.
        ways: The figures. The first is without drafts.
    """

    backbone: str
    assistant: str
    data: list[str]
    settings: dict[str, Any]
    prompts: int
    prompt_tokens: int
    device: str
    threads: int
    versions: dict[str, str]
    ways: list[Drafted]

    def save(self, file: Path) -> None:
        """As JSON, with the figures that follow from others."""
        values = dataclasses.asdict(self)
        for row, way in zip(values["ways"], self.ways, strict=True):
            row |= {name: getattr(way, name) for name in ("tokens_per_pass", "accepted", "tokens_per_second")}
            row["ratio"] = way.times_as_fast_as(self.ways[0])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def load_writer(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """A causal language model, its adapters merged: unmerged they cost time at each step."""
    model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    if getattr(model, "_hf_peft_config_loaded", False):
        from hf_sllm.training.adapters import merge_adapters

        model = merge_adapters(model)
    return model.to("cuda" if torch.cuda.is_available() else "cpu", dtype).eval()


def first_halves(
    documents: Sequence[Mapping[str, Any]] | Any, tokenizer: PreTrainedTokenizerBase, max_prompt: int
) -> list[list[int]]:
    """The start token and the first half of each document's, at most `max_prompt` tokens in all."""
    from hf_sllm.data import document_ids

    rows = document_ids([document["text"] for document in documents], tokenizer)
    return [row[: min(len(row) // 2, max_prompt)] for row in rows]


def print_drafting(found: DraftingReport, console: Console) -> None:
    """The figures of each way, beside those without drafts."""
    settings = found.settings
    console.print(
        f"{found.backbone}, drafts by {found.assistant}: {'sampled' if settings['sample'] else 'greedy'}, "
        f"{settings['dtype']}, {found.device}, {found.threads} threads, {found.prompts} prompts of "
        f"{found.prompt_tokens / found.prompts:.0f} tokens, {settings['new_tokens']} new tokens at most",
        highlight=False,
    )
    console.print(drafting_table(found))


def drafting_table(found: DraftingReport) -> Table:
    """A row for each way."""
    table = table_of("Drafting", "tokens/pass", "drafted/pass", "accepted", "tokens/s", "ratio", "same text")
    for way in found.ways:
        table.add_row(
            way.way,
            f"{way.tokens_per_pass:.2f}",
            f"{way.drafted / way.passes:.2f}",
            "" if way.accepted is None else f"{way.accepted:.0%}",
            f"{way.tokens_per_second:,.1f}",
            f"{way.times_as_fast_as(found.ways[0]):.2f}",
            "" if found.settings["sample"] else f"{way.identical} of {found.prompts}",
        )
    return table
