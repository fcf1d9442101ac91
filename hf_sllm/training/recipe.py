"""What a training run is made of: one YAML file, read into three sets of arguments."""

import difflib
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from transformers import HfArgumentParser, TrainingArguments

RECIPES = Path(__file__).parent / "recipes"


@dataclass
class ModelArguments:
    """The model: its backbone, its tokenizer, and what is put around the backbone."""

    stage: str = field(
        default="sllm",
        metadata={"help": "`sllm`, or `sentence_vae` to train encoder and decoder alone, to reconstruct sentences."},
    )
    backbone: str | None = field(
        default=None, metadata={"help": "Name or path of a causal language model to begin from."}
    )
    sllm: str | None = field(
        default=None, metadata={"help": "Instead of `backbone`: name or path of a trained SLLM to go on from."}
    )
    backbone_config: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Instead of `backbone`: the fields of an AutoConfig, `model_type` first, to begin from scratch."
        },
    )
    baseline_config: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "With `baseline` and `backbone_config`: fields in which the baseline differs from the backbone."
        },
    )
    baseline_model: str | None = field(
        default=None,
        metadata={"help": "With `baseline` and `sllm`: name or path of the token-level model that goes on beside it."},
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Name or path of a tokenizer; by default the backbone's."}
    )
    tokenizer_vocab_size: int | None = field(
        default=None, metadata={"help": "Instead of `tokenizer`: train one of this size on the training documents."}
    )
    # An int or a list of ints, which HfArgumentParser cannot express.
    encoder_layers: Any = field(
        default=None, metadata={"help": "How many of the backbone's layers, or which, begin the encoder."}
    )
    decoder_layers: Any = field(
        default=None, metadata={"help": "How many of the backbone's layers, or which, begin the decoder."}
    )
    unit: str = field(default="sentence", metadata={"help": "`sentence` or `clause`."})
    preset: str = field(default="default", metadata={"help": "`default` or `paper`."})
    sllm_config: dict[str, Any] | None = field(
        default=None, metadata={"help": "Further fields of SllmConfig, or of SentenceVaeConfig in that stage."}
    )
    sentence_vae: str | None = field(
        default=None,
        metadata={
            "help": "Name or path of a sentence VAE whose encoder and decoder the SLLM begins with; in the stage "
            "`sentence_vae`, instead of `backbone`, of the one to go on from."
        },
    )
    lora: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "Fields of peft's LoraConfig: adapt the backbone by LoRA rather than train all of it."},
    )
    freeze: list[str] | None = field(
        default=None, metadata={"help": "Modules, by name, that stay as they are, e.g. `language_model`."}
    )

    def __post_init__(self):
        for name in ("encoder_layers", "decoder_layers"):
            layers = getattr(self, name)
            indices = layers if isinstance(layers, list) else [layers]
            if layers is not None and not all(type(index) is int for index in indices):
                raise ValueError(f"`{name}` is {layers!r}: it must be a number of layers, or a list of their indices.")
        if self.stage not in ("sllm", "sentence_vae"):
            raise ValueError(f"`stage` is {self.stage!r}: it must be `sllm` or `sentence_vae`.")
        begin = self._check_begin()
        self._check_config_and_tokenizer(begin)

    def _check_begin(self) -> str:
        """What the model begins with, which is one thing: a backbone, the config of one, or a trained model."""
        trained = self.stage  # is also the name of the argument that gives a trained model of this stage
        if self.stage == "sentence_vae":
            for name in ("sllm", "lora", "baseline_config"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` has no meaning in the stage `sentence_vae`: leave it out.")
        begins = ("backbone", "backbone_config", trained)
        given = [name for name in begins if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a recipe has one of `{begins[0]}`, `{begins[1]}` and `{begins[2]}`: this one has "
                f"{' and '.join(given) or 'none'}."
            )
        if given == [trained]:
            for name in ("encoder_layers", "decoder_layers", "sentence_vae"):
                if name != trained and getattr(self, name) is not None:
                    raise ValueError(
                        f"`{name}` is for a model that is made anew, and `{trained}` names one: leave it out."
                    )
        return given[0]

    def _check_config_and_tokenizer(self, begin: str) -> None:
        """A model from scratch has an architecture and needs a tokenizer; any other has both."""
        if self.tokenizer is not None and self.tokenizer_vocab_size is not None:
            raise ValueError("a recipe has `tokenizer` or `tokenizer_vocab_size`: this one has both.")
        if self.backbone_config is None:
            if self.baseline_config is not None:
                raise ValueError(
                    "`baseline_config` changes `backbone_config`, and this recipe has none: leave it out."
                )
            if self.tokenizer_vocab_size is not None:
                raise ValueError(
                    f"`tokenizer_vocab_size` trains a tokenizer that `{begin}` does not know: leave it out."
                )
            return
        if "model_type" not in self.backbone_config:
            raise ValueError("`backbone_config` has no `model_type`: say which architecture, e.g. llama.")
        if self.tokenizer is None and self.tokenizer_vocab_size is None:
            raise ValueError("a model from scratch needs a `tokenizer`, or `tokenizer_vocab_size` to train one.")


@dataclass
class DataArguments:
    """The documents to train on and to measure on."""

    # A string or a list of them, which HfArgumentParser cannot express.
    train_data: Any = field(metadata={"help": "A file, a pattern of files, a dataset on the Hub, or a list of these."})
    valid_data: Any = field(metadata={"help": "The same, of the documents that are measured on."})
    text_column: str = field(default="text", metadata={"help": "The column that holds the text."})
    messages_column: str | None = field(
        default=None,
        metadata={
            "help": "Instead of `text_column`: the column of chats. What the assistant says is learned, after what "
            "the tokenizer's chat template makes of the turns before."
        },
    )
    train_split: str = field(default="train", metadata={"help": "The split of `train_data`, if it is on the Hub."})
    valid_split: str = field(
        default="validation", metadata={"help": "The split of `valid_data`, if it is on the Hub."}
    )
    block_size: int = field(default=512, metadata={"help": "The longest training example, in tokens."})
    train_limit: int | None = field(default=None, metadata={"help": "Train on the first so many documents only."})
    valid_limit: int | None = field(
        default=None, metadata={"help": "Measure on so many documents only, spread over all."}
    )
    valid_bytes: int | None = field(
        default=None, metadata={"help": "Cut the documents that are measured on into pieces of at most so many bytes."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read `train_data` as it is trained on; then give `max_steps`."}
    )
    num_proc: int | None = field(default=None, metadata={"help": "Processes that cut documents into examples."})


@dataclass
class SllmTrainingArguments(TrainingArguments):
    """transformers' training arguments with defaults that suit texts of different lengths, and three more."""

    baseline: bool = field(
        default=False,
        metadata={"help": "Also train the bare backbone: the same examples, order and schedule, for comparison."},
    )
    new_parts_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of what the backbone does not have; by default `learning_rate`."},
    )
    kl_warmup_steps: int = field(
        default=0, metadata={"help": "Steps in which the weight of the KL term rises from 0 to `kl_weight`."}
    )
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"help": "Batches of texts of similar length waste little on padding."}
    )
    include_num_input_tokens_seen: str | bool = field(
        default="non_padding", metadata={"help": "The tokens seen are reported beside each figure."}
    )
    report_to: None | str | list[str] = field(default="tensorboard", metadata={"help": "Where to log."})


KINDS: Any = (ModelArguments, DataArguments, SllmTrainingArguments)


class Recipe(NamedTuple):
    """The three sets of arguments."""

    model: ModelArguments
    data: DataArguments
    training: SllmTrainingArguments


def load_recipe(
    path: str | Path, output_dir: str | Path | None = None, changes: dict[str, Any] | None = None
) -> Recipe:
    """Reads a recipe. Paths in it are relative to the current folder; texts may also lie beside the recipe.

    Args:
        path: A YAML file, or the name of one of the recipes that come with the package.
        output_dir: Replaces the recipe's.
        changes: Replace the recipe's values; where a value is a mapping, entry by entry.

    Raises:
        ValueError: If there is no such recipe, or it has a key that nothing reads, lacks one, or has a value that
            cannot be.
    """
    file = find_recipe(str(path))
    values = read_yaml(file)
    values = merge(values, changes or {})
    if output_dir is not None:
        values["output_dir"] = str(output_dir)
    _check_keys(file, values)
    for name in ("train_data", "valid_data"):
        values[name] = texts_of(values[name], file.parent)
    try:
        recipe = Recipe(*HfArgumentParser(KINDS).parse_dict(values))
    except (TypeError, ValueError, ImportError) as error:
        raise ValueError(f"{file}: {error}") from error
    if recipe.data.streaming and recipe.training.max_steps <= 0:
        raise ValueError(f"{file}: `streaming` tells no number of steps in advance: give `max_steps`.")
    if recipe.data.messages_column is not None:
        for name, given in (
            ("streaming", recipe.data.streaming),
            ("tokenizer_vocab_size", recipe.model.tokenizer_vocab_size is not None),
        ):
            if given:
                raise ValueError(f"{file}: `messages_column` goes with no `{name}`: leave one of them out.")
    if recipe.training.baseline and recipe.model.stage == "sentence_vae":
        raise ValueError(f"{file}: `baseline` is of the stage `sllm`: a backbone reconstructs nothing.")
    goes_on = recipe.training.baseline and recipe.model.sllm is not None
    if goes_on and recipe.model.baseline_model is None:
        raise ValueError(
            f"{file}: `baseline` begins as the SLLM's backbone, and `sllm` is trained already: give `baseline_model`, "
            "a token-level model to go on beside it, or leave `baseline` out."
        )
    if recipe.model.baseline_model is not None and not goes_on:
        raise ValueError(
            f"{file}: `baseline_model` is {recipe.model.baseline_model!r}: it goes on beside a trained `sllm`, where "
            "`baseline` is true. Give both, or leave it out."
        )
    return recipe


def merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Values with some changed; where both are mappings, entry by entry."""
    both = {key for key, value in changes.items() if isinstance(value, dict) and isinstance(values.get(key), dict)}
    return {**values, **changes, **{key: merge(values[key], changes[key]) for key in both}}


def load_changes(texts: list[str]) -> dict[str, Any]:
    """The `changes` that `key=value` says, each value as YAML has it; dots lead into mappings.

    Raises:
        ValueError: If one of the texts is not of this form.
    """
    changes: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise ValueError(f"{text!r} changes no key of the recipe: write `key=value`, e.g. `max_steps=100`.")
        try:
            change: Any = yaml.load(value, Loader=_Loader)
        except yaml.YAMLError as error:
            raise ValueError(f"the value of {text!r} is not YAML: {error}") from error
        for name in reversed(key.split(".")):
            change = {name: change}
        changes = merge(changes, change)
    return changes


def texts_of(names: Any, folder: Path) -> Any:
    """Names of texts, where those that are not found from the current folder and lie beside the recipe have its."""
    if isinstance(names, list):
        return [texts_of(name, folder) for name in names]
    beside = isinstance(names, str) and not Path(names).exists() and (folder / names).is_file()
    return str(folder / names) if beside else names


def read_yaml(file: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        ValueError: If it is not YAML, or holds something else.
    """
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} is no recipe: it must be a list of `key: value`.")
    return values


def find_recipe(name: str, folder: Path = RECIPES) -> Path:
    """The file of this path, or else of this name among those that come with the package."""
    own = folder / f"{name.removesuffix('.yaml')}.yaml"
    for file in (Path(name), own):
        if file.is_file():
            return file
    available = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
    raise ValueError(f"there is no recipe {name!r} here; those that come with the package are {available}.")


def _check_keys(file: Path, values: dict[str, Any]) -> None:
    known = [entry.name for kind in KINDS for entry in fields(kind)]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f": did you mean {close[0]!r}?" if close else "."
            raise ValueError(f"{file} has an unknown key {key!r}{hint}")
    for key in ("train_data", "valid_data", "output_dir"):
        if values.get(key) is None:
            raise ValueError(f"{file} has no {key!r}, which every recipe needs.")


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as the number that it is in YAML 1.2; PyYAML, which follows 1.1, wants 1.0e-3."""


_EXPONENT = re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
