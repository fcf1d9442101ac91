"""The frontier: token-level models and SLLMs of several shapes, trained on the same tokens, and what each is worth.

A model is better than another one if it predicts better, writes faster and keeps less. Most are better in one of these
and worse in another, so what is sought are the models that no other beats in all three. To be fair each model has the
best of several learning rates, chosen on one half of the held-out texts and measured on the other.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from rich.console import Console
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_sllm.benchmark.side_by_side import measure_side_by_side
from hf_sllm.benchmark.training import training_flops
from hf_sllm.data.statistics import sentence_statistics
from hf_sllm.evaluation import bits_per_byte, default_window, entropy_floor

from .frontier_plot import plot_frontier
from .frontier_points import Point, best_rate, mark_unbeaten, print_points, write_points
from .recipe import ModelArguments, Recipe, SllmTrainingArguments, find_recipe, load_recipe, merge, read_yaml
from .recovery import check_new, check_shape, token_level
from .run import has_begun, load_trained, make_model, read_texts, train_model

FRONTIERS = Path(__file__).parent / "frontiers"
KEYS = {"recipe", "learning_rates", "token_level", "sllm"}
# Of the recipe, what the SLLMs may differ in.
SLLM_KEYS = {"name", "backbone_config", "encoder_layers", "decoder_layers", "sllm_config"}
CONTEXT_LENGTHS = (256, 2048, 8192)
NEW_TOKENS = 128
RESULTS = "frontier.json"
PICTURE = "frontier.svg"


@dataclass(frozen=True)
class Variant:
    """A model to train.

    Attributes:
        name: Of its folder, and in the table.
        kind: `token_level` or `sllm`.
        arguments: Make an SLLM, or one whose decoder has the shape of the token-level model.
        window: How many tokens back each layer of a token-level model sees; `None` is all.
    """

    name: str
    kind: str
    arguments: ModelArguments
    window: int | None = None

    def make(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """The model before training.

        Raises:
            ValueError: If its fields do not fit each other.
        """
        try:
            if self.kind == "sllm":
                return make_model(self.arguments, tokenizer)
            return token_level(self.arguments, tokenizer, full_context=self.window is None)
        except (ValueError, TypeError, StrictDataclassError) as error:
            raise ValueError(f"{self.name} cannot be made: {error}") from error


class Plan(NamedTuple):
    """A frontier file."""

    recipe: Recipe
    learning_rates: list[float]
    variants: list[Variant]


def frontier(
    file: str | Path,
    output_dir: str | Path,
    seeds: Sequence[int] = (0,),
    resume: bool = False,
    console: Console | None = None,
) -> list[Point]:
    """Trains the models of a frontier file, measures them, and prints and draws which of them no other beats.

    The first seed trains each model with all learning rates, each further seed with the best one. `output_dir` gets
    the models, `frontier.json`, which is written again after each of them, and `frontier.svg`.

    Args:
        file: A YAML file, or the name of one of the package's, see `read_plan`.
        output_dir: Each model has a folder in it.
        seeds: Of the trainings.
        resume: Go on with what `output_dir` holds; what is trained is not trained again.
        console: Where the tables are printed.

    Raises:
        ValueError: If the file cannot be carried out, `output_dir` holds what is not to be gone on with, or models of
            other shapes.
    """
    output_dir, seeds = Path(output_dir), list(dict.fromkeys(seeds))
    recipe, learning_rates, variants = read_plan(file, output_dir)
    data, training = recipe.data, recipe.training
    is_first, console = training.process_index == 0, console or Console()
    console.quiet = console.quiet or not is_first
    show = is_first and not training.disable_tqdm
    if not resume and any(has_begun(folder) for folder in output_dir.glob("*/seed-*/rate-*")):
        raise ValueError(f"{output_dir} already holds models: go on by --resume, or give another --output-dir.")

    tokenizer, blocks, valid = read_texts(recipe, output_dir, resume)
    choosing, reported = halves(valid)
    untrained = {variant.name: variant.make(tokenizer) for variant in variants}
    window = default_window(*untrained.values())
    lengths = sentence_lengths(list(untrained.values()), tokenizer, reported)

    def score(model: PreTrainedModel, documents: list[dict[str, Any]], show: bool = False) -> float:
        batch_size = training.per_device_eval_batch_size
        return bits_per_byte(model, tokenizer, documents, batch_size, show, window=window).bits_per_byte

    def trained(variant: Variant, rate: float, seed: int) -> tuple[PreTrainedModel, dict[str, Any]]:
        folder = output_dir / variant.name / f"seed-{seed}" / f"rate-{rate:g}"
        place = f"model {variants.index(variant) + 1} of {len(variants)}"
        console.print(f"{place}: {variant.name}, learning rate {rate:g}, seed {seed}")
        summary = train_model(
            lambda: variant.make(tokenizer), variant.arguments, tokenizer, blocks, with_rate(training, rate, seed),
            folder, resume, lambda model: {"bits_per_byte": score(model, choosing)},
        )  # fmt: skip
        model = load_trained(folder, "sllm")
        check_shape(model, untrained[variant.name], folder)
        return model.to(training.device), summary  # type: ignore[arg-type]

    floor = entropy_floor(reported)
    points: list[Point] = []
    for variant, length in zip(variants, lengths, strict=True):
        chosen_by: dict[float, float] = {}
        for rate in learning_rates:
            one = trained(variant, rate, seeds[0])
            chosen_by[rate] = score(one[0], choosing, show)
            if best_rate(chosen_by) == rate:
                best = one
        rate, bits, minutes = best_rate(chosen_by), {}, {}
        for seed in seeds:
            model, summary = best if seed == seeds[0] else trained(variant, rate, seed)
            bits[seed], minutes[seed] = score(model, reported, show), summary["minutes"]
        flops = flops_per_token(untrained[variant.name], blocks) * summary["tokens_seen"]
        points.append(
            Point(
                variant.name, variant.kind, model.num_parameters(), flops, summary["tokens_seen"], minutes, chosen_by,
                rate, bits, length,
            )
        )  # fmt: skip
        if is_first:
            write_points(points, floor, output_dir / RESULTS)

    configs = [model.config for model in untrained.values()]
    speeds = measure_side_by_side(configs, lengths, CONTEXT_LENGTHS, training.device, NEW_TOKENS, progress=show)
    for point, speed in zip(points, speeds, strict=True):
        point.tokens_per_second = {context: found.tokens_per_second for context, found in speed.items()}
        point.cache_bytes_per_token = {context: found.cache_bytes_per_token for context, found in speed.items()}
    mark_unbeaten(points)
    if is_first:
        write_points(points, floor, output_dir / RESULTS)
        plot_frontier(points, floor, output_dir / PICTURE)
    print_points(points, floor, f"{data.valid_data}, {len(reported)} of {len(valid)} documents", console)
    return points


def read_plan(file: str | Path, output_dir: Path) -> Plan:
    """Reads a frontier file.

    It has `recipe`, the name or path of a recipe that makes an SLLM from scratch; `learning_rates`; `token_level`, for
    each model the fields in which it differs from the recipe's backbone, and `window`; and `sllm`, for each model its
    `name` and what it changes in the recipe. `changes` may hold values that all change in it.

    Raises:
        ValueError: If it has other keys, lacks one, or has a value that cannot be.
    """
    values = read_yaml(find_recipe(str(file), FRONTIERS))
    if not KEYS <= set(values) <= KEYS | {"changes"}:
        raise ValueError(
            f"{file} has the keys {', '.join(sorted(map(str, values)))}: it must have {', '.join(sorted(KEYS))}, and "
            "may have changes."
        )
    rates = values["learning_rates"]
    if not (
        isinstance(rates, list) and rates and all(type(rate) in (int, float) and 0 < rate < math.inf for rate in rates)
    ):
        raise ValueError(f"`learning_rates` is {rates!r}: it must be a list of numbers above 0.")
    for key in ("token_level", "sllm"):
        entries = values[key]
        if not (isinstance(entries, list) and entries and all(isinstance(entry, dict) for entry in entries)):
            raise ValueError(f"`{key}` is {entries!r}: it must be a list of models, each with its fields.")
    recipe = load_recipe(values["recipe"], output_dir, values.get("changes"))
    check_recipe(recipe)
    variants = [token_level_variant(recipe.model, entry) for entry in values["token_level"]]
    for entry in values["sllm"]:
        if "name" not in entry or not set(entry) <= SLLM_KEYS:
            raise ValueError(
                f"`sllm` has a model with {', '.join(map(str, entry))}: it must have `name`, and may have "
                f"{', '.join(sorted(SLLM_KEYS - {'name'}))}."
            )
        changes = {key: value for key, value in entry.items() if key != "name"}
        merged = merge(values.get("changes") or {}, changes)
        arguments = load_recipe(values["recipe"], output_dir, merged).model
        variants.append(Variant(str(entry["name"]), "sllm", arguments))
    names = [variant.name for variant in variants]
    for name in names:
        if names.count(name) > 1 or name != Path(name).name or not name.strip("."):
            raise ValueError(f"`name` is {name!r}: it must be one that no other model has, and a folder can have.")
    return Plan(recipe, list(dict.fromkeys(map(float, rates))), variants)


def check_recipe(recipe: Recipe) -> None:
    """Refuses a recipe whose models could not be compared with token-level ones.

    Raises:
        ValueError: If it makes no SLLM from scratch of a Llama's shape, or streams its texts.
    """
    arguments = recipe.model
    check_new(arguments, "a frontier", ("backbone_config",))
    model_type = (arguments.backbone_config or {})["model_type"]
    if model_type != "llama":
        raise ValueError(
            f"`backbone_config.model_type` is {model_type!r}: a frontier needs a llama, whose shape with a window "
            "is a mistral's."
        )
    if recipe.data.streaming:
        raise ValueError(
            "`streaming` is true: FLOPs are counted on an example of the mean length, which a stream does not tell. "
            "Leave it out."
        )


def token_level_variant(arguments: ModelArguments, fields: dict[str, Any]) -> Variant:
    """A token-level model of the backbone's shape, with some fields changed.

    Raises:
        ValueError: If a Llama has no such field, or the window is no number of tokens.
    """
    changes = {key: value for key, value in fields.items() if key not in ("name", "window")}
    known = AutoConfig.for_model("llama")
    for key in changes:
        if key == "model_type" or not hasattr(known, key):
            raise ValueError(
                f"`token_level` has a model with {key!r}: it may have `name`, `window`, and fields of a llama's "
                "config, such as `num_hidden_layers`."
            )
    window = fields.get("window")
    if window is not None and (type(window) is not int or window < 1):
        raise ValueError(f"`window` is {window!r}: it must be a number of tokens above 0; leave it out to see all.")
    shape = {**(arguments.backbone_config or {}), **changes}
    # `token_level` makes what has the shape of an SLLM's decoder.
    arguments = dataclasses.replace(
        arguments,
        backbone_config=shape,
        encoder_layers=1,
        decoder_layers=None,
        preset="default",
        sllm_config={"sentence_decoder_config": shape, "decoder_context_length": window or 1},
    )
    return Variant(str(fields.get("name") or described(fields)), "token_level", arguments, window)


def described(fields: dict[str, Any]) -> str:
    """A name for a token-level model without one."""
    words = [
        f"{value} layer{'s' * (value != 1)}" if key == "num_hidden_layers" else f"{key.replace('_', ' ')} {value}"
        for key, value in fields.items()
    ]
    return ", ".join(["token-level", *words])


def halves(valid: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The documents with even numbers, which choose the learning rate, and those with odd ones, which measure.

    Raises:
        ValueError: If there are fewer than two.
    """
    if len(valid) < 2:
        raise ValueError(
            f"`valid_data` has {len(valid)} documents: one half of them chooses the learning rates and the other "
            "measures: give at least 2."
        )
    rows = list(valid)
    return rows[::2], rows[1::2]


def sentence_lengths(
    models: Sequence[PreTrainedModel], tokenizer: PreTrainedTokenizerBase, documents: list[dict[str, Any]]
) -> list[int]:
    """How many tokens the sentences have that each model writes when it is timed: an SLLM's as many as those that it
    finds in these texts on average. For a token-level model it makes no difference.
    """
    lengths = []
    for model in models:
        mean = 16.0
        if model.config.model_type == "sllm":
            cuts = sentence_statistics(documents, tokenizer, model.config, candidates=(), progress=False).cuts
            mean = cuts[0].tokens_per_sentence
        lengths.append(min(round(mean), NEW_TOKENS // 2))
    return lengths


def with_rate(training: SllmTrainingArguments, rate: float, seed: int) -> SllmTrainingArguments:
    """The recipe's training with another learning rate; that of the new parts changes by the same factor."""
    new_parts = training.new_parts_learning_rate
    if new_parts is not None:
        new_parts *= rate / training.learning_rate
    return dataclasses.replace(training, learning_rate=rate, new_parts_learning_rate=new_parts, seed=seed)


def flops_per_token(model: PreTrainedModel, blocks: Any) -> float:
    """FLOPs of training on a token of these blocks, counted on one of them.

    A block of n tokens costs a n + b n², so a token of it costs a + b n. The mean of that over all tokens is the cost
    in a block of the length in which a token finds itself on average: the sum of n² over the sum of n.
    """
    lengths = torch.tensor(blocks["length"][:], dtype=torch.float64)
    of_token = lengths.square().sum() / lengths.sum()
    block = blocks[int((lengths - of_token).abs().argmin())]["input_ids"]
    return training_flops(model, torch.tensor([block])) / len(block)
