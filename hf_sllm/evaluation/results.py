"""What was measured of a model and of the one that it is held against: one object, saved as JSON and read again.

From it come the tables, the figure and the `EvalResult`s of a model card.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub import EvalResult

from .bits_per_byte import BitsPerByte, LengthBits
from .stopping import Stopping


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
        samples_latents: Whether it samples the latents of each sentence. Then its bits are those of one sample: on
            average no fewer than those of the text, which cannot be computed.
    """

    name: str
    model_type: str
    parameters: int
    figures: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    samples_latents: bool = False

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
                    samples_latents=side.get("samples_latents", False),
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
