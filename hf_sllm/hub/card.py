"""Model cards: filled from what was measured and from the model's own files, so that no figure is typed by hand."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoConfig, PreTrainedConfig

from hf_sllm.evaluation import Evaluation
from hf_sllm.evaluation.tables import TABLES, cells_of
from hf_sllm.modeling import SentenceVaeModel, SllmForCausalLM
from hf_sllm.modeling.transformers_private import find_file
from hf_sllm.modeling.validation_checkpoint import shapes_in
from hf_sllm.training.results import COLUMNS

MARK = "<!-- Made by `hf-sllm card`; sha256 {} -->"
MARKED = re.compile(r"^<!-- Made by `hf-sllm card`; sha256 ([0-9a-f]{64}) -->\s*$", re.MULTILINE)
CLASSES: dict[str, Any] = {"sllm": SllmForCausalLM, "sentence_vae": SentenceVaeModel}
PIPELINES = {"sllm": "text-generation", "sentence_vae": "feature-extraction"}


@dataclass
class About:
    """What no file of the model tells, said by who made it.

    Attributes:
        summary: What the model is, in a sentence or two.
        intended_use: For what, and for what not.
        limits: Each a sentence.
        training_data: For each source its `name`, `license`, and in `text` what it is.
        prompt: What the example begins with.
        license, language, base_model, datasets, tags: The metadata of these names; `datasets` and `base_model` are
            names on the Hub.
    """

    summary: str = ""
    intended_use: str = ""
    limits: list[str] = field(default_factory=list)
    training_data: list[dict[str, str]] = field(default_factory=list)
    prompt: str = "The"
    license: str | None = None
    language: str | list[str] | None = None
    base_model: str | list[str] | None = None
    datasets: list[str] | None = None
    tags: list[str] = field(default_factory=list)


def make_card(
    model: str | Path,
    evaluation: Path | None = None,
    about: About | None = None,
    name: str | None = None,
    is_on_hub: bool = False,
) -> str:
    """Fills the template.

    Args:
        model: Folder of an SLLM or sentence VAE, or its name on the Hub.
        evaluation: The JSON that `hf-sllm eval` wrote; by default `evaluation.json` beside the model, if there is one.
        about: What no file tells.
        name: What the model is called where it will be; by default `model`.
        is_on_hub: Whether the model's code will lie beside it.

    Returns:
        The card, metadata and all, ending in a mark by which `is_generated` knows it.

    Raises:
        ValueError: If the evaluation is of another model, or the metadata is not what the Hub's client reads.
    """
    about = about or About()
    name = str(model) if name is None else name
    config = AutoConfig.from_pretrained(model)
    if config.model_type not in CLASSES:
        raise ValueError(f"{model} is a {config.model_type!r} model: a card is of an SLLM or a sentence VAE.")
    adapters = count_adapters(model)
    parameters = count_parameters(config) + adapters
    evaluation = evaluation or beside(model, "evaluation.json")
    found = None if evaluation is None else Evaluation.load(evaluation)
    if found is not None and (found.sides[0].model_type, found.sides[0].parameters) != (config.model_type, parameters):
        raise ValueError(
            f"{evaluation} is of {found.sides[0].name} with {found.sides[0].parameters:,} parameters, and {model} has "
            f"{parameters:,}: evaluate this model by `hf-sllm eval`."
        )
    short_name = Path(name).name
    data = ModelCardData(
        language=about.language,
        license=about.license,
        library_name="transformers",
        pipeline_tag=PIPELINES[config.model_type],
        base_model=about.base_model,
        datasets=about.datasets,
        tags=["sllm", "sentence-level", *(["custom_code"] if is_on_hub else []), *about.tags],
        model_name=short_name,
        eval_results=None
        if found is None
        else [one for one in found.eval_results() if math.isfinite(one.metric_value)],
    )
    if not data.eval_results:
        data.eval_results = data.model_name = None
    card = ModelCard.from_template(
        data,
        template_str=(files("hf_sllm.hub") / "template.md").read_text(encoding="utf-8"),
        title=short_name,
        sources=[["source", "licence", "what it is"], *map(source_cells, about.training_data)],
        name=name,
        is_on_hub=is_on_hub,
        about=about,
        parts=parts_of(config),
        parameters=parameters,
        adapters=adapters,
        config=config,
        training=read_json(model, "training.json"),
        run=[] if (run := read_json(model, "results.json")) is None else run_cells(run),
        evaluation=found,
        evaluated_on=[] if found is None else list(map(public_name, found.data)),
        tables=[] if found is None else tables_of(found),
        markdown=markdown_table,
    )
    check_metadata(card)
    text = str(card).rstrip() + "\n"
    return f"{text}\n{MARK.format(digest(text))}\n"


def is_generated(text: str) -> bool:
    """Whether a card is as `make_card` made it: nobody has written or changed it since."""
    mark = MARKED.search(text)
    return mark is not None and mark[1] == digest(MARKED.sub("", text))


def digest(text: str) -> str:
    """Of the text but for what editors change unasked: space at the ends of lines and of the file."""
    return hashlib.sha256("\n".join(line.rstrip() for line in text.strip().splitlines()).encode()).hexdigest()


def load_about(file: Path) -> About:
    """Reads what is said of a model from YAML.

    Raises:
        ValueError: If it is no such file, or has a key that is not known.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no YAML: {error}") from error
    known = [one.name for one in dataclasses.fields(About)]
    if not isinstance(values, dict) or not values.keys() <= set(known):
        unknown = sorted(set(values) - set(known)) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{file} has {unknown}: it may have {', '.join(known)}.")
    return About(**values)


def check_metadata(card: ModelCard) -> None:
    """Checks without the Hub what its client can check: the YAML is read back as it was meant, results and all.

    `ModelCard.validate` asks the Hub, and so does `create_commit` for every card that is pushed.
    """
    again = ModelCard(str(card))
    if again.data.to_dict() != card.data.to_dict():
        raise ValueError("the card's metadata is not read back as it was written: look for odd values in `about`.")


def count_parameters(config: PreTrainedConfig) -> int:
    """How many the model has, tied ones once. No weights are read."""
    with torch.device("meta"):
        return CLASSES[config.model_type](config).num_parameters()


def count_adapters(model: str | Path) -> int:
    """How many parameters adapters have beside the model's own; 0 if it has none."""
    file = beside(model, "adapter_model.safetensors")
    return 0 if file is None else sum(math.prod(shape) for _, shape in shapes_in(str(file)))


def parts_of(config: Any) -> list[tuple[str, str, int, int]]:
    """The parts of a model: what each is, its architecture, its layers, its width."""
    parts = {
        "sentence encoder": config.sentence_encoder_config,
        "backbone": getattr(config, "text_config", None),
        "sentence decoder": config.sentence_decoder_config,
    }
    return [
        (part, one.model_type, one.num_hidden_layers, one.hidden_size)
        for part, one in parts.items()
        if one is not None
    ]


def beside(model: str | Path, file: str) -> Path | None:
    """A file beside the model's weights; `None` if there is none."""
    found = find_file(model, file)
    return None if found is None else Path(found)


def read_json(model: str | Path, file: str) -> Any:
    """What such a file holds."""
    found = beside(model, file)
    return None if found is None else json.loads(found.read_text(encoding="utf-8"))


def public_name(source: str) -> str:
    """Where on somebody's disk a file lies tells a reader nothing."""
    return Path(source).name if Path(source).is_absolute() else source


def source_cells(source: dict[str, str]) -> list[str]:
    """One source of training data."""
    return [" ".join(str(source.get(key, "not stated")).split()) for key in ("name", "license", "text")]


def run_cells(results: list[dict[str, Any]]) -> list[list[str]]:
    """The table of a training run, its heads first."""
    names = [name for name in COLUMNS if any(line.get(name) is not None for line in results)]
    rows = [[line["name"], *(_cell(line.get(name), COLUMNS[name][1].format) for name in names)] for line in results]
    return [["", *(COLUMNS[name][0] for name in names)], *rows]


def _cell(value: Any, write: Callable[[Any], str]) -> str:
    return "" if value is None else write(value)


def tables_of(found: Evaluation) -> list[tuple[str, list[list[str]]]]:
    """Each measure's title and cells."""
    tables = []
    for measure, (title, lines_of) in TABLES.items():
        sides = [side for side in found.sides if measure in side.figures]
        if sides:
            tables.append((title, cells_of(lines_of, measure, sides, found.floor)))
    return tables


def markdown_table(cells: list[list[str]], of_figures: bool = True) -> str:
    """Its first row are the heads. Figures stand on the right."""
    head, *rows = [[cell.strip().replace("|", "\\|") for cell in row] for row in cells]
    lines = [head, ["---", *["---:" if of_figures else "---"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
