"""One run, both sides: what is measured of a model and of the one that it is held against, in one object.

From that object come the tables, the JSON, the figure and the `EvalResult`s of a model card.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import EvalResult
from rich.console import Console
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file

from hf_sllm.data.statistics import sentence_rule

from .bits_per_byte import BitsPerByte, LengthBits, by_sentence_length, entropy_floor, total_bits
from .context import context_use, needle
from .likelihood import default_window, score_documents
from .parallel import parallel_cost
from .reconstruction import reconstruction
from .shortlist import shortlist_coverage
from .stopping import Stopping, stopping
from .writing import brier_lm, writing

if TYPE_CHECKING:
    from datasets import Dataset

VERSIONS_OF = ("hf-sllm", "torch", "transformers")


@dataclass(frozen=True)
class Likelihood:
    """What one pass over the documents tells.

    Attributes:
        total: Bits per byte of all.
        by_sentence_length: The same for sentences of some lengths.
        stopping: Whether ends of sentences are foretold.
    """

    total: BitsPerByte
    by_sentence_length: tuple[LengthBits, ...]
    stopping: Stopping


@dataclass
class Side:
    """One of the models.

    Attributes:
        name: Its path or name.
        model_type: Its config's.
        parameters: How many.
        figures: What was measured, by measure.
        failures: Why a measure could not be taken, by measure.
    """

    name: str
    model_type: str
    parameters: int
    figures: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Short enough for a column, or a legend."""
        return f"{Path(self.name).name} ({self.model_type})"


@dataclass
class Evaluation:
    """What was measured, of all sides on the same documents.

    Attributes:
        data: Where the documents come from.
        documents, bytes: How many, and the UTF-8 bytes of their texts.
        floor: Bits per byte below which no model can score, if the data tells it.
        window, stride: See `score_documents`; both sides have the same.
        seed: Of all that is drawn.
        sides: The model, and what it is held against.
        versions: Of what computed it.
    """

    data: list[str]
    documents: int
    bytes: int
    floor: float | None
    window: int
    stride: int
    seed: int
    sides: list[Side]
    versions: dict[str, str]

    def save(self, file: Path) -> None:
        """As JSON. A file half written never takes the place of one that was whole."""
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".tmp")
        draft.write_text(json.dumps(_plain(self), indent=2) + "\n", encoding="utf-8")
        draft.replace(file)

    @classmethod
    def load(cls, file: Path) -> "Evaluation":
        """Reads what `save` wrote. Figures come as plain objects with the attributes that they had.

        Raises:
            ValueError: If the file is no evaluation.
        """
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            sides = [
                Side(
                    **{name: side[name] for name in ("name", "model_type", "parameters", "failures")},
                    figures={measure: _attributes(figures) for measure, figures in side["figures"].items()},
                )
                for side in values["sides"]
            ]
            fields = {name.name: values[name.name] for name in dataclasses.fields(cls)}
            return cls(**{**fields, "sides": sides})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is no evaluation: {error!r}. Write one by `hf-sllm eval --output`.") from error

    def eval_results(self) -> list[EvalResult]:
        """What a model card states of the first side."""
        side = self.sides[0]
        task = "Feature extraction" if side.model_type == "sentence_vae" else "Text generation"
        return [
            EvalResult(
                task_type=task.lower().replace(" ", "-"),
                task_name=task,
                dataset_type="text",
                dataset_name=", ".join(Path(name).name for name in self.data),
                metric_type=metric_type,
                metric_name=name,
                metric_value=round(value, 6),
            )
            for metric_type, name, value in headlines(side)
        ]


def _plain(value: Any) -> Any:
    """Dataclasses as dicts, what they compute from their fields included."""
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        names += [name for name, what in vars(type(value)).items() if isinstance(what, property)]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _attributes(value: Any) -> Any:
    """Dicts as objects with attributes."""
    if isinstance(value, dict):
        return SimpleNamespace(**{key: _attributes(one) for key, one in value.items()})
    return [_attributes(one) for one in value] if isinstance(value, list) else value


def headlines(side: Side) -> list[tuple[str, str, float]]:
    """The few figures that stand for all: the metric's type, its name, and its value."""
    figures = side.figures
    found: list[tuple[str, str, float | None]] = []
    if "likelihood" in figures:
        total: BitsPerByte = figures["likelihood"].total
        found += [("bits_per_byte", "Bits per byte", total.bits_per_byte)]
        found += [("perplexity", "Token perplexity", total.token_perplexity)]
        found += [("f1", "F1 of sentence ends", figures["likelihood"].stopping.f1)]
    if "reconstruction" in figures:
        copied = figures["reconstruction"]
        found += [("accuracy", "Tokens reconstructed", copied.token_accuracy)]
        found += [("exact_match", "Sentences reconstructed exactly", copied.exact_sentences)]
    if "brier" in figures:
        found += [("brier_lm", "BrierLM", figures["brier"].brier_lm)]
    return [(kind, name, value) for kind, name, value in found if value is not None]


@dataclass(frozen=True)
class Settings:
    """What every measure is given beside the model."""

    tokenizer: PreTrainedTokenizerBase
    documents: "Dataset"
    rule: PreTrainedConfig
    window: int
    stride: int
    batch_size: int
    seed: int
    progress: bool


def _likelihood(model: PreTrainedModel, given: Settings) -> Likelihood:
    begun = time.monotonic()
    scores = list(
        score_documents(
            model,
            given.tokenizer,
            given.documents,
            given.rule,
            given.window,
            given.stride,
            given.batch_size,
            given.progress,
        )
    )
    total = dataclasses.replace(total_bits(scores), seconds=time.monotonic() - begun)
    return Likelihood(total, by_sentence_length(scores), stopping(scores))


def _drawn(measure: Callable[..., Any]) -> Callable[[PreTrainedModel, Settings], Any]:
    """A measure that draws what it looks at."""

    def run(model: PreTrainedModel, given: Settings) -> Any:
        return measure(
            model,
            given.tokenizer,
            given.documents,
            given.rule,
            batch_size=given.batch_size,
            seed=given.seed,
            progress=given.progress,
        )

    return run


def _brier(model: PreTrainedModel, given: Settings) -> Any:
    return brier_lm(
        model,
        given.tokenizer,
        given.documents,
        batch_size=given.batch_size,
        seed=given.seed,
        progress=given.progress,
    )


def _reconstruction(model: PreTrainedModel, given: Settings) -> Any:
    return reconstruction(
        model, given.tokenizer, given.documents, given.batch_size, given.progress, compare_texts=True
    )


def _shortlist(model: PreTrainedModel, given: Settings) -> Any:
    return shortlist_coverage(
        model, given.tokenizer, given.documents, batch_size=given.batch_size, progress=given.progress
    )


def _parallel(model: PreTrainedModel, given: Settings) -> Any:
    return parallel_cost(model, given.tokenizer, given.documents, batch_size=given.batch_size, progress=given.progress)


MEASURES: dict[str, Callable[[PreTrainedModel, Settings], Any]] = {
    "likelihood": _likelihood,
    "context": _drawn(context_use),
    "needle": _drawn(needle),
    "writing": _drawn(writing),
    "brier": _brier,
    "reconstruction": _reconstruction,
    "shortlist": _shortlist,
    "parallel": _parallel,
}

# Measures taken by default only where the config gives this loss a weight: without it most models cannot be measured.
LOSS_OF = {
    "reconstruction": "reconstruction_weight",
    "shortlist": "bag_of_words_weight",
    "parallel": "next_latent_weight",
}


def evaluate(
    model: str,
    documents: "Dataset",
    data: Sequence[str],
    against: str | None = None,
    measures: Sequence[str] | None = None,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
    keep: Callable[[Evaluation], None] | None = None,
) -> Evaluation:
    """Measures a model, and one to hold it against, on the same documents, with the same seed and window.

    Args:
        model: Path or name of a causal language model, or of a sentence VAE.
        documents: Rows with a `text`.
        data: Where they come from, for the record.
        against: Path or name of the other one, of any causal language model.
        measures: Some of `MEASURES`; by default all that fit the model. One that cannot be taken, because the
            documents are too short for it for instance, is noted with the reason, and the others go on.
        window, stride: See `score_documents`; by default the most that both sides read at once, and half of it.
        batch_size: Texts at a time.
        seed: Of what is drawn.
        progress: Whether to show progress bars, on standard error.
        keep: Called with what there is so far, whenever a figure has come in: so that nothing measured is lost.

    Raises:
        ValueError: If a measure is unknown, or there is no document.
    """
    unknown = sorted(set(measures or ()) - set(MEASURES))
    if unknown:
        raise ValueError(f"`measures` has {', '.join(unknown)}: there are {', '.join(MEASURES)}.")
    if len(documents) == 0:
        raise ValueError("`documents` is empty: there is nothing to measure.")
    names = [model] if against is None else [model, against]
    models = [_load(name) for name in names]
    tokenizers = [AutoTokenizer.from_pretrained(name) for name in names]
    rules = _rules([one.config for one in models], tokenizers)
    window = default_window(*models) if window is None else window
    stride = max(window // 2, 1) if stride is None else stride
    found = Evaluation(
        data=list(data),
        documents=len(documents),
        bytes=sum(len(text.encode(errors="replace")) for text in documents["text"]),
        floor=entropy_floor(documents),
        window=window,
        stride=stride,
        seed=seed,
        sides=[
            Side(name, one.config.model_type, one.num_parameters()) for name, one in zip(names, models, strict=True)
        ],
        versions={name: version(name) for name in VERSIONS_OF},
    )
    for measure in measures or default_measures(models[0]):
        for side, one, tokenizer, rule in zip(found.sides, models, tokenizers, rules, strict=True):
            if progress:
                Console(stderr=True).print(f"{measure}: {side.name}", style="dim", highlight=False)
            given = Settings(tokenizer, documents, rule, window, stride, batch_size, seed, progress)
            try:
                side.figures[measure] = MEASURES[measure](one, given)
            except (ValueError, ImportError) as error:
                side.failures[measure] = str(error)
            if keep is not None:
                keep(found)
    return found


def _load(name: str) -> PreTrainedModel:
    """In float32, where a figure counts. Adapters are found with the language model that they adapt."""
    is_adapter = find_adapter_config_file(name) is not None
    is_vae = not is_adapter and AutoConfig.from_pretrained(name).model_type == "sentence_vae"
    model: Any = (AutoModel if is_vae else AutoModelForCausalLM).from_pretrained(name, dtype=torch.float32)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _rules(
    configs: Sequence[PreTrainedConfig], tokenizers: Sequence[PreTrainedTokenizerBase]
) -> list[PreTrainedConfig]:
    """Where sentences end, for each side: as its own config has it; a bare model's are those of the other side if it
    has the same tokens."""
    own = [config if hasattr(config, "boundary_token_ids") else None for config in configs]
    rules = []
    for rule, tokenizer in zip(own, tokenizers, strict=True):
        if rule is None:
            shared = [
                other
                for other, others in zip(own, tokenizers, strict=True)
                if other is not None and others.get_vocab() == tokenizer.get_vocab()
            ]
            rule = shared[0] if shared else sentence_rule(tokenizer)
        rules.append(rule)
    return rules


def default_measures(model: PreTrainedModel) -> list[str]:
    """All that such a model can be measured by."""
    if model.config.model_type == "sentence_vae":
        return ["reconstruction"]
    return [name for name in MEASURES if name not in LOSS_OF or getattr(model.config, LOSS_OF[name], 0) > 0]
