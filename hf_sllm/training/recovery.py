"""Recovery: of what a window of tokens loses, the share that the sentence level brings back.

Three models are trained on the same tokens: a token-level one that sees everything, the same with the decoder's
window, and the SLLM. The token-level ones have the shape of the SLLM's decoder, or are its pretrained backbone. With
the nats per token of each on held-out texts,

    recovery = (window - SLLM) / (window - full context).

Two controls show that what is brought back was said far back in this text: with the memory of another text the gain
must go, and with that of the newest sentence alone it must be less. A third is a model of its own, trained with a
memory through which no gradient flows: what it recovers needs nobody to learn what to write into a memory.
"""

import dataclasses
import json
import math
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_sllm.data import document_ids
from hf_sllm.evaluation import BitsPerByte, default_window, entropy_floor, score_documents, total_bits
from hf_sllm.evaluation.facts import FactScore, fact_scores
from hf_sllm.evaluation.memory import Change, changed_memory, of_another_text, of_newest_sentence
from hf_sllm.modeling import SllmConfig

from .recipe import ModelArguments, Recipe
from .run import load_trained, make_backbone, make_model, read_texts, train_model

# Where full context is worth less than so many nats per token, no model can show that it brings anything back.
LEAST_HEADROOM = 0.01
RESULTS = "recovery.json"
# The lines of the table, by the fields of `Recovery`; the first three are the models that are always trained.
LINES = {
    "full": "full context",
    "window": "window",
    "sllm": "SLLM",
    "another_memory": "memory of another text",
    "newest_only": "newest sentence only",
    "detached": "trained with memory detached",
}
# Those below them are what `hf-sllm data casts` knows of its documents, by their columns.
BOUNDS = {"floor": "bits", "forgets": "bits_forgetful"}


@dataclass
class Recovery:
    """What one seed reached, in nats per token of the held-out texts.

    Attributes:
        seed: Of the three trainings.
        full, window: Of the token-level models with full context and with the decoder's window.
        sllm: Of the SLLM.
        another_memory: Of the SLLM with the memory of another text; `None` for a model without a memory.
        newest_only: Of the SLLM with the memory of the newest sentence alone; `None` as above.
        nats_per_bit_of_a_byte: What one bit per byte is of these figures.
        tokens_seen: Tokens trained on, by each.
        minutes: Wall time of each training: full, window, SLLM, and detached if there is one.
        parameters: Of full, window and SLLM.
        detached: Of an SLLM that was trained with its memory detached; `None` where none was.
        facts: Of each model and control the `FactScore` of each distance, where the texts tell their facts.
    """

    seed: int
    full: float
    window: float
    sllm: float
    another_memory: float | None
    newest_only: float | None
    nats_per_bit_of_a_byte: float
    tokens_seen: int
    minutes: list[float]
    parameters: list[int]
    detached: float | None = None
    facts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def headroom(self) -> float:
        """What full context is worth."""
        return self.window - self.full

    def recovered(self, nats: float | None) -> float | None:
        """The share of the headroom that a model with so many nats per token wins back; `None` where there is none."""
        return None if nats is None or self.headroom <= 0 else (self.window - nats) / self.headroom

    def recovered_of(self, floor: float) -> float:
        """The share of what the window loses to a writer who remembers everything, and pays so many nats per token,
        that the SLLM wins back. It is stricter than recovery: no model that sees everything can do better."""
        return (self.window - self.sllm) / (self.window - floor)

    def to_dict(self) -> dict[str, Any]:
        """All figures, also those that follow from others."""
        nats = {name: getattr(self, name) for name in LINES if getattr(self, name) is not None}
        return {
            **asdict(self),
            "headroom": self.headroom,
            "recovery": self.recovered(self.sllm),
            "recovered": {name: self.recovered(value) for name, value in nats.items()},
            "bits_per_byte": {name: value / self.nats_per_bit_of_a_byte for name, value in nats.items()},
        }


def recovery(
    recipe: Recipe,
    seeds: list[int],
    resume: bool = False,
    console: Console | None = None,
    detached: bool = False,
) -> list[Recovery]:
    """Trains the three models for each seed, measures them and prints the table.

    Everything is saved under the recipe's `output_dir`, the figures in `recovery.json`.

    Args:
        recipe: See `load_recipe`. It makes an SLLM from scratch, or of a backbone.
        seeds: Each trains three models.
        resume: Go on from what `output_dir` holds; what is trained is not trained again.
        console: Where the table is printed.
        detached: Train a fourth model for each seed, see `detach_memory`.

    Raises:
        ValueError: If the three models could not be compared (see `check_comparable`), or `output_dir` holds what is
            not to be gone on with, or models of another recipe.
    """
    arguments, data, training = recipe
    check_comparable(arguments)
    is_first = training.process_index == 0
    console, output_dir = console or Console(), Path(str(training.output_dir))
    console.quiet = console.quiet or not is_first
    if not resume and output_dir.exists() and any(output_dir.iterdir()):
        raise ValueError(f"{output_dir} is not empty: go on with it by --resume, or give another --output-dir.")
    tokenizer, blocks, valid = read_texts(recipe, output_dir, resume=True)
    makers = {
        "full": lambda: token_level(arguments, tokenizer, full_context=True),
        "window": lambda: token_level(arguments, tokenizer, full_context=False),
        "sllm": lambda: make_model(arguments, tokenizer),
    }
    if detached:
        makers["detached"] = lambda: detach_memory(make_model(arguments, tokenizer))
    untrained = {name: make() for name, make in makers.items()}
    window = default_window(*untrained.values())
    batch_size, show = training.per_device_eval_batch_size, is_first and not training.disable_tqdm

    facts: dict[str, tuple[FactScore, ...]] = {}

    def score(model: PreTrainedModel, name: str = "", batch_size: int = batch_size) -> BitsPerByte:
        scores = list(score_documents(model, tokenizer, valid, window=window, batch_size=batch_size, progress=show))
        if name and "facts" in valid.column_names:
            facts[name] = fact_scores(scores, valid)
        return total_bits(scores)

    def measure_in_training(model: PreTrainedModel) -> dict[str, float]:
        return {"bits_per_byte": score(model).bits_per_byte}

    bounds = {name: entropy_floor(valid, column) for name, column in BOUNDS.items()}
    found = []
    for seed in dict.fromkeys(seeds):
        settings = dataclasses.replace(training, seed=seed)
        models: dict[str, PreTrainedModel] = {}
        summaries = {}
        for name, make in makers.items():
            folder = output_dir / f"seed-{seed}" / name
            console.print(f"training: {name}, seed {seed}")
            summaries[name] = train_model(
                make, arguments, tokenizer, blocks, settings, folder, resume, measure_in_training
            )
            models[name] = load_trained(folder, "sllm")
            check_shape(models[name], untrained[name], folder)
            models[name].to(training.device)  # type: ignore[arg-type]
        scored = {name: score(model, name) for name, model in models.items()}
        controls: dict[str, float | None] = dict.fromkeys(CONTROLS)
        if models["sllm"].model.memory is not None:
            for name, change in CONTROLS.items():
                with changed_memory(models["sllm"], change):
                    controls[name] = nats_per_token(score(models["sllm"], name, max(batch_size, 2)))
        found.append(
            Recovery(
                seed=seed,
                facts={name: [asdict(group) for group in groups] for name, groups in facts.items()},
                full=nats_per_token(scored["full"]),
                window=nats_per_token(scored["window"]),
                sllm=nats_per_token(scored["sllm"]),
                another_memory=controls["another_memory"],
                newest_only=controls["newest_only"],
                nats_per_bit_of_a_byte=math.log(2) * scored["sllm"].bytes / scored["sllm"].tokens,
                tokens_seen=summaries["sllm"]["tokens_seen"],
                minutes=[summaries[name]["minutes"] for name in makers],
                parameters=[models[name].num_parameters() for name in ("full", "window", "sllm")],
                detached=nats_per_token(scored["detached"]) if detached else None,
            )
        )
        if is_first:
            results = [{**one.to_dict(), **bounds} for one in found]
            (output_dir / RESULTS).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print_recovery(found, bounds, f"{data.valid_data}, {len(valid)} documents", console)
    longer = sum(len(ids) - 1 > window for ids in document_ids([row["text"] for row in valid], tokenizer))
    if longer:
        console.print(
            f"{longer} documents are longer than the {window} tokens that the models read at once. No model sees them "
            "whole, and the memory of another text may be of another part of the same one: cut them by `valid_bytes`."
        )
    return found


def detach_memory(model: Any) -> Any:
    """The SLLM, of which no gradient flows through the memory to what is written there.

    Raises:
        ValueError: If it has no memory.
    """
    memory = model.model.memory
    if memory is None:
        raise ValueError(
            "`memory` is None: there is none to detach. Give one in `sllm_config`, or leave this control out."
        )
    write = memory.write
    memory.write = lambda latents: write(latents.detach())
    return model


def check_new(arguments: ModelArguments, measure: str, begins: tuple[str, ...]) -> None:
    """Refuses a recipe that does not make a new SLLM and train all of it, for which there is nothing to measure.

    Args:
        measure: What for, in the messages.
        begins: What the recipe may begin from, of `backbone_config` and `backbone`.

    Raises:
        ValueError: Names the field, its value and the remedy.
    """
    if arguments.stage != "sllm":
        raise ValueError(f"`stage` is {arguments.stage!r}: {measure} is measured of an SLLM: make it `sllm`.")
    for name in ("backbone", "sllm", "sentence_vae", "lora", "freeze"):
        if getattr(arguments, name) is not None and name not in begins:
            raise ValueError(
                f"`{name}` is {getattr(arguments, name)!r}: {measure} compares new models, all of whose weights are "
                f"trained on the same tokens: leave it out, and give {' or '.join(f'`{begin}`' for begin in begins)}."
            )


def check_comparable(arguments: ModelArguments) -> None:
    """Refuses a recipe whose SLLM has no token-level models of the same shape, trained in the same way.

    Raises:
        ValueError: If it begins from something trained other than a backbone, trains a part only, or its decoder or
            backbone is no Llama, whose shape with a window is a Mistral's, or its decoder has no window.
    """
    check_new(arguments, "recovery", ("backbone_config", "backbone"))
    make_config = SllmConfig.paper if arguments.preset == "paper" else SllmConfig.from_text_config
    given = {"encoder_layers": arguments.encoder_layers, "decoder_layers": arguments.decoder_layers}
    backbone = backbone_config(arguments)
    config = make_config(
        backbone,
        **{name: layers for name, layers in given.items() if layers is not None},
        **(arguments.sllm_config or {}),
    )
    name, shape = "sentence_decoder_config", config.sentence_decoder_config
    if arguments.backbone is not None:
        name, shape = "backbone", backbone
    if shape.model_type != "llama" or getattr(shape, "attention_bias", False) or getattr(shape, "mlp_bias", False):
        raise ValueError(
            f"`{name}.model_type` is {shape.model_type!r}: recovery needs a llama without biases, whose shape with a "
            f"window is a mistral's. Give {'another' if name == 'backbone' else 'one in `sllm_config`'}."
        )
    if config.decoder_context_length == 0:
        raise ValueError(
            "`decoder_context_length` is 0: there is no window whose loss could be recovered. Give one above 0 in "
            "`sllm_config`."
        )


def backbone_config(arguments: ModelArguments) -> PreTrainedConfig:
    """Of the backbone that a recipe names or describes."""
    if arguments.backbone is not None:
        return AutoConfig.from_pretrained(arguments.backbone)
    return AutoConfig.for_model(**(arguments.backbone_config or {}))


def check_shape(trained: PreTrainedModel, untrained: PreTrainedModel, folder: Path) -> None:
    """Refuses a model that was trained by another recipe.

    Raises:
        ValueError: If its parameters have other names or shapes than those of this recipe's.
    """
    shapes = [{name: value.shape for name, value in model.named_parameters()} for model in (trained, untrained)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{folder} holds a model of {trained.num_parameters():,} parameters, and the recipe makes another of "
            f"{untrained.num_parameters():,}: delete the folder, or give another --output-dir."
        )


def token_level(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase, full_context: bool) -> PreTrainedModel:
    """The token-level model, with the SLLM's window in each layer or with full context: its backbone, or from scratch
    a model of the shape of its decoder."""
    config: Any = make_model(arguments, tokenizer).config
    window = None if full_context else config.decoder_context_length + 1  # which counts the token itself
    if arguments.backbone is not None:
        backbone = make_backbone(arguments, tokenizer)
        model = mistral(backbone.config.to_dict(), sliding_window=window)
        model.load_state_dict(backbone.state_dict())
        return model
    # What the decoder leaves to the whole is the whole's: vocabulary, special tokens, and whether weights are tied.
    of_whole = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")
    fields = config.sentence_decoder_config.to_dict()
    return mistral({**fields, **{name: getattr(config, name) for name in of_whole}}, sliding_window=window)


def mistral(fields: dict[str, Any], sliding_window: int | None) -> PreTrainedModel:
    """A Llama of these fields whose layers have a window, which makes it a Mistral."""
    fields = {name: value for name, value in fields.items() if name not in ("model_type", "architectures")}
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model("mistral", **{**fields, "sliding_window": sliding_window})
    )


def nats_per_token(score: BitsPerByte) -> float:
    """What a token costs on average."""
    return score.bits * math.log(2) / score.tokens


CONTROLS: dict[str, Change] = {"another_memory": of_another_text, "newest_only": of_newest_sentence}


def print_recovery(found: list[Recovery], bounds: dict[str, float | None], title: str, console: Console) -> None:
    """Prints a line for each model, the median over the seeds."""
    table = Table(title=title, box=SIMPLE_HEAD)
    for name in ("", "nats per token", "bits per byte", "recovery", "each seed", "parameters"):
        table.add_column(name, justify="right" if name else "left", no_wrap=name in ("", "parameters"))
    unit = found[0].nats_per_bit_of_a_byte
    for name, label in (("floor", "floor: remembers"), ("forgets", "floor: forgets")):
        bits = bounds[name]
        if bits is not None:
            table.add_row(label, f"{bits * unit:.4f}", f"{bits:.4f}")
    for number, (name, label) in enumerate(LINES.items()):
        values = [getattr(one, name) for one in found]
        if None in values:
            continue
        shares = [one.recovered(value) for one, value in zip(found, values, strict=True)]
        known = [share for share in shares if share is not None]
        nats = statistics.median(values)
        parameters = f"{found[0].parameters[number]:,}" if number < len(found[0].parameters) else ""
        table.add_row(
            label, f"{nats:.4f}", f"{nats / unit:.4f}", f"{statistics.median(known):.1%}" if known else "–",
            " ".join("–" if share is None else f"{share:.0%}" for share in shares), parameters,
        )  # fmt: skip
    console.print(table)
    if bounds["floor"] is not None and bounds["forgets"] is not None:
        way = (bounds["forgets"] - statistics.median(one.full for one in found) / unit) / (
            bounds["forgets"] - bounds["floor"]
        )
        console.print(f"Full context has gone {way:.0%} of the way from forgetting to the floor.")
        floor = bounds["floor"]
        won = [one.recovered_of(floor * one.nats_per_bit_of_a_byte) for one in found]
        console.print(
            "Of what its window loses to a writer who remembers everything, the SLLM brings back "
            f"{statistics.median(won):.0%} ({' '.join(f'{share:.0%}' for share in won)})."
        )
    print_facts(found, console)
    headroom = statistics.median(one.headroom for one in found)
    if headroom < LEAST_HEADROOM:
        console.print(
            f"Full context is worth {headroom:.4f} nats per token here, less than {LEAST_HEADROOM}: this text cannot "
            "show whether anything is brought back."
        )


def print_facts(found: list[Recovery], console: Console) -> None:
    """Prints what the words cost that follow from what was said so many sentences back, the median over the seeds."""
    if not all(one.facts for one in found):
        return
    groups = found[0].facts["full"]
    table = Table(title="nats of a word that follows from what was said, and how often it is known", box=SIMPLE_HEAD)
    table.add_column("sentences back")
    for group in groups:
        last = "and more" if group["farthest"] is None else f"to {group['farthest']}"
        table.add_column(f"{group['nearest']} {last}", justify="right")
    table.add_row("words", *(f"{group['words']:,}" for group in groups))
    for name, label in LINES.items():
        if all(name in one.facts for one in found):
            columns = zip(*(one.facts[name] for one in found), strict=True)
            medians = [
                [statistics.median(group[key] for group in column) for key in ("nats", "known")] for column in columns
            ]
            table.add_row(label, *(f"{nats:.3f} ({known:.0%})" for nats, known in medians))
    console.print(table)
