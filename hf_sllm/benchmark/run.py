"""What `hf-sllm bench` measures: a function for each of its commands, all beside the bare backbone in the same run."""

import math
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import track
from transformers import AutoTokenizer

from .drafting import DraftingReport, first_halves, load_writer, make_ways, measure_drafting
from .generation import Side, check_lengths, make_sides, measure_generation
from .predictors import PredictorSpeed, measure_predictors
from .profile import ProfileReport, profile_sides
from .results import DTYPES, Benchmark, Settings, compare, make_row
from .roofline import memory_bandwidth, weights_read
from .shapes import fit_shortlist, make_pair, memory_fields, random_text
from .training import TrainingReport, measure_training

if TYPE_CHECKING:
    from datasets import Dataset

VERSIONS_OF = ("hf-sllm", "torch", "transformers")


def benchmark_generation(
    settings: Settings, progress: bool = True, keep: Callable[[Benchmark], None] | None = None
) -> Benchmark:
    """Measures all lengths of context and sizes of batch, the short and small ones first.

    Args:
        progress: Whether to show a progress bar, on standard error.
        keep: Called with what there is so far, whenever figures have come in: so that nothing measured is lost.

    Raises:
        ValueError: If something cannot be measured.
    """
    settings.check()
    device = default_device()
    dtype = DTYPES[settings.dtype]
    backbone, sllm = (
        model.to(device, dtype).eval()  # type: ignore[arg-type]
        for model in make_pair(
            settings.shapes,
            settings.sentence_length,
            settings.decoder_layers,
            settings.preset,
            next_latent_weight=0.0 if settings.sentences_at_once == 1 else 1.0,
            **memory_fields(settings.memory_layers),
        )
    )
    if settings.shortlist_size is not None:
        fit_shortlist(sllm)
    sides = make_sides(backbone, sllm, settings.compiled, settings.shortlist_size, settings.sentences_at_once)
    weights = [weights_read(side.model, side.options.get("shortlist_size"), side.sentences_at_once) for side in sides]
    found = Benchmark(
        settings=settings,
        **_where(device),
        decoder_layers=sllm.config.sentence_decoder_config.num_hidden_layers,
        parameters={side.name: side.model.num_parameters() for side in sides},
        bandwidth=memory_bandwidth(device, dtype),
    )
    # From short to long: transformers does not make a static cache shorter than the last one.
    cells = [(length, size) for length in sorted(settings.context_lengths) for size in sorted(settings.batch_sizes)]
    console = Console(stderr=True)
    for context_length, batch_size in track(
        cells, "Reading and writing by turns", console=console, disable=not progress
    ):
        vocab_size = backbone.config.get_text_config(decoder=True).vocab_size
        token_ids = random_text(batch_size, context_length, settings.sentence_length, vocab_size).to(device)
        figures = measure_generation(sides, token_ids, settings.sentence_length, settings.new_tokens, settings.runs)
        for side, own, read in zip(sides, figures, weights, strict=True):
            ratios = {} if side.model is sllm else compare(own, figures[-1])
            found.rows.append(
                make_row(
                    side.name, context_length, batch_size, settings.sentence_length, own, read, found.bandwidth, ratios
                )
            )
        if keep is not None:
            keep(found)
    return found


def benchmark_profile(
    shapes: str = "smollm2-135m",
    context_length: int = 256,
    batch_size: int = 1,
    sentence_length: int = 16,
    new_tokens: int = 64,
    decoder_layers: int | None = None,
    dtype: str = "bfloat16",
    shortlist_size: int = 2048,
    runs: int = 5,
    progress: bool = True,
) -> ProfileReport:
    """Profiles the backbone's token loop, the SLLM's, its sentence loop, and that with a shortlist.

    Args:
        shapes, decoder_layers: See `make_pair`.
        context_length, batch_size, sentence_length, new_tokens: See `measure_generation`.
        dtype: Of the weights and of all that is computed, one of `DTYPES`.
        shortlist_size: Of the SLLM's lists of tokens.
        runs: How many times each is measured, by turns.
        progress: Whether to show a progress bar, on standard error.

    Raises:
        ValueError: If something cannot be measured.
    """
    check_dtype(dtype)
    check_lengths(context_length, sentence_length, new_tokens)
    device = default_device()
    backbone, sllm = (
        model.to(device, DTYPES[dtype]).eval()  # type: ignore[arg-type]
        for model in make_pair(shapes, sentence_length, decoder_layers)
    )
    fit_shortlist(sllm)
    by_sentence = {"max_sentences": math.inf}
    sides = [
        Side("backbone", backbone, {}),
        Side("SLLM by token", sllm, {}),
        Side("by sentence", sllm, by_sentence),
        Side("with the shortlist", sllm, {**by_sentence, "shortlist_size": shortlist_size}),
    ]
    vocab_size = backbone.config.get_text_config(decoder=True).vocab_size
    token_ids = random_text(batch_size, context_length, sentence_length, vocab_size).to(device)
    return ProfileReport(
        settings={
            "shapes": shapes,
            "context_length": context_length,
            "batch_size": batch_size,
            "sentence_length": sentence_length,
            "new_tokens": new_tokens,
            "dtype": dtype,
            "shortlist_size": shortlist_size,
            "runs": runs,
        },
        decoder_layers=sllm.config.sentence_decoder_config.num_hidden_layers,
        **_where(device),
        profiles=profile_sides(sides, token_ids, sentence_length, new_tokens, runs, progress),
    )


def benchmark_drafting(
    backbone: str,
    assistant: str,
    documents: "Dataset",
    data: Sequence[str],
    new_tokens: int = 128,
    max_prompt: int = 256,
    thresholds: Sequence[float] = (0.0, 0.4),
    draft_tokens: int | None = None,
    lookup_tokens: int = 10,
    dtype: str = "float32",
    sample: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> DraftingReport:
    """Measures what drafts of an SLLM are worth to a backbone on the documents' second halves.

    Args:
        backbone: Path or name of the model whose text is written, or of an adapter for it.
        assistant: Of the SLLM, or of any causal language model with the same tokens.
        documents: Rows with a `text`, held out. The first half of each is a prompt.
        data: Where they come from, for the record.
        max_prompt: The longest prompt, in tokens.
        dtype: Of weights and of all that is computed, one of `DTYPES`. In less than float32, rounding can decide
            between tokens that are almost equally likely: then texts may differ.

    For the others see `make_ways` and `measure_drafting`.

    Raises:
        ValueError: If the two have different tokens, or there is no document or no such `dtype`.
    """
    check_dtype(dtype)
    if new_tokens < 1 or max_prompt < 1:
        raise ValueError(f"`new_tokens` and `max_prompt` are {new_tokens} and {max_prompt}: both must be at least 1.")
    if len(documents) == 0:
        raise ValueError("`documents` is empty: there is nothing to go on from.")
    tokenizer, other = (AutoTokenizer.from_pretrained(name) for name in (backbone, assistant))
    if tokenizer.get_vocab() != other.get_vocab():
        raise ValueError(f"{backbone} and {assistant} have different tokens: drafts must be in those of the backbone.")
    writer, drafter = (load_writer(name, DTYPES[dtype]) for name in (backbone, assistant))
    ways = make_ways(drafter, thresholds, draft_tokens, lookup_tokens)
    prompts = first_halves(documents, tokenizer, max_prompt)
    found = measure_drafting(writer, ways, prompts, new_tokens, sample, seed, progress)
    return DraftingReport(
        backbone=backbone,
        assistant=assistant,
        data=list(data),
        settings={
            "new_tokens": new_tokens,
            "max_prompt": max_prompt,
            "dtype": dtype,
            "sample": sample,
            "seed": seed,
            "ways": [{"name": way.name, **way.draft} for way in ways],
            "lookup_tokens": lookup_tokens,
        },
        prompts=len(prompts),
        prompt_tokens=sum(map(len, prompts)),
        **_where(writer.device),
        ways=found,
    )


def benchmark_training(
    shapes: str = "smollm2-135m",
    sentence_length: int = 16,
    decoder_layers: int | None = None,
    batch_size: int = 4,
    length: int = 512,
    steps: int = 5,
    bf16: bool = True,
    progress: bool = True,
) -> TrainingReport:
    """Trains both sides on random text, all weights of each.

    Args:
        shapes, decoder_layers: See `make_pair`.
        batch_size, length, sentence_length: See `random_text`.
        steps, bf16, progress: See `measure_training`.
    """
    device = default_device()
    backbone, sllm = make_pair(shapes, sentence_length, decoder_layers)
    token_ids = random_text(batch_size, length, sentence_length, backbone.config.vocab_size).to(device)
    return TrainingReport(
        title=f"{shapes}, {batch_size} x {length} tokens, sentences of {sentence_length}, {device.type}",
        decoder_layers=sllm.config.sentence_decoder_config.num_hidden_layers,
        parameters={"backbone": backbone.num_parameters(), "SLLM": sllm.num_parameters()},
        speed=measure_training(backbone, sllm, token_ids, steps, bf16, progress),
    )


def benchmark_predictors(
    shapes: str = "smollm2-135m",
    context_length: int = 256,
    sentence_length: int = 16,
    sentences: int = 8,
    decoder_layers: int | None = None,
    runs: int = 3,
    progress: bool = True,
) -> list[PredictorSpeed]:
    """The backbone and each predictor of latents, on random text; see `measure_predictors`."""
    where = default_device()
    return measure_predictors(
        shapes, context_length, sentence_length, sentences, decoder_layers, runs, progress, where
    )


def default_device() -> torch.device:
    """The GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_dtype(dtype: str) -> None:
    """Refuses what is not one of `DTYPES`."""
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` is {dtype!r}: it must be one of {', '.join(DTYPES)}.")


def _where(device: torch.device) -> dict[str, Any]:
    """Where it ran, and what computed it: the fields of that name that each report has."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in VERSIONS_OF},
    }
