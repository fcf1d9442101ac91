"""One training run: the tokenizer, the SLLM and, beside it, the bare backbone; then what each of them reaches."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from hf_sllm.data import BlockCollator, load_documents, make_blocks, train_tokenizer
from hf_sllm.evaluation import bits_per_byte, entropy_floor
from hf_sllm.modeling import SllmForCausalLM

from .recipe import ModelArguments, Recipe, SllmTrainingArguments
from .results import Result, print_results, write_results
from .trainer import SllmTrainer

if TYPE_CHECKING:
    from datasets import Dataset

# Written when a model has been trained to the end: a resumed run does not train it again.
SUMMARY = "training.json"


def train(recipe: Recipe, resume: bool = False, console: Console | None = None) -> list[Result]:
    """Trains what a recipe says and measures it.

    The SLLM and its tokenizer are saved in `output_dir`, the baseline, if there is one, in `output_dir/baseline`, the
    figures in `output_dir/results.json`.

    Args:
        recipe: See `load_recipe`.
        resume: Go on from the last checkpoints in `output_dir`.
        console: Where the table is printed.

    Returns:
        The lines of the table.

    Raises:
        ValueError: If the recipe cannot be carried out, or `output_dir` holds a run that is not to be resumed.
    """
    arguments, training = recipe.model, recipe.training
    console, progress = console or Console(), Console(stderr=True)
    output_dir = Path(str(training.output_dir))
    baseline_dir = output_dir / "baseline"
    if not resume and (has_begun(output_dir) or has_begun(baseline_dir)):
        raise ValueError(f"{output_dir} already holds a run: go on with it by --resume, or give another --output-dir.")

    with training.main_process_first(desc="reading documents"):
        documents = load_documents(
            recipe.data.train_data, recipe.data.train_split, recipe.data.text_column, recipe.data.train_limit
        )
        valid = load_documents(recipe.data.valid_data, recipe.data.valid_split, recipe.data.text_column)
        tokenizer = make_tokenizer(arguments, documents, output_dir, resume)

    def make_sllm() -> SllmForCausalLM:
        return SllmForCausalLM.from_backbone(
            make_backbone(arguments, tokenizer),
            tokenizer,
            encoder_layers=arguments.encoder_layers,
            decoder_layers=arguments.decoder_layers,
            unit=arguments.unit,
            preset=arguments.preset,
            **(arguments.sllm_config or {}),
        )

    config = make_sllm().config
    with training.main_process_first(desc="cutting documents into blocks"):
        blocks = make_blocks(documents, tokenizer, config, recipe.data.block_size)

    def measure(name: str, model: PreTrainedModel, summary: dict[str, Any] | None = None) -> Result:
        progress.print(f"measuring: {name}")
        model.to(training.device)  # type: ignore[arg-type]
        found = bits_per_byte(model, tokenizer, valid, training.per_device_eval_batch_size, not training.disable_tqdm)
        return Result(name, found.bits_per_byte, parameters=model.num_parameters(), **(summary or {}))

    def train_and_measure(name: str, make_model: Callable[[], PreTrainedModel], folder: Path) -> Result:
        progress.print(f"training: {name}")
        summary = train_model(make_model, tokenizer, blocks, training, folder, resume)
        # Read back from where it was saved: what is measured is what a user gets, in full precision.
        saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return measure(name, saved, summary)

    results = []
    floor = entropy_floor(valid)
    if floor is not None:
        results.append(Result("floor", floor))
    if arguments.backbone is not None:
        backbone = make_backbone(arguments, tokenizer)
        results.append(measure("backbone before", backbone, {"tokens_seen": 0}))
        del backbone
    if training.baseline:
        name = "backbone trained"
        results.append(train_and_measure(name, lambda: make_backbone(arguments, tokenizer), baseline_dir))
    results.append(train_and_measure("SLLM", make_sllm, output_dir))
    if training.process_index == 0:
        write_results(results, output_dir / "results.json")
        print_results(results, f"{recipe.data.valid_data}, {len(valid)} documents", console)
    return results


def make_tokenizer(
    arguments: ModelArguments, documents: "Dataset", output_dir: Path, resume: bool
) -> PreTrainedTokenizerBase:
    """The tokenizer that the recipe names, or one trained on the documents, or on resuming the one trained before."""
    if arguments.tokenizer_vocab_size is None:
        return AutoTokenizer.from_pretrained(arguments.tokenizer or arguments.backbone)
    if not (resume and (output_dir / "tokenizer.json").exists()):
        train_tokenizer(documents["text"], arguments.tokenizer_vocab_size).save_pretrained(output_dir)
    return AutoTokenizer.from_pretrained(output_dir)


def make_backbone(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The backbone as it is before training."""
    if arguments.backbone is not None:
        return AutoModelForCausalLM.from_pretrained(arguments.backbone, dtype=torch.float32)
    of_tokenizer = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    fields = {"vocab_size": len(tokenizer), **of_tokenizer, **(arguments.backbone_config or {})}
    if fields["vocab_size"] < len(tokenizer):
        raise ValueError(
            f"`backbone_config.vocab_size` is {fields['vocab_size']}: the tokenizer has {len(tokenizer)} tokens. "
            "Leave it out."
        )
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))


def train_model(
    make_model: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    blocks: "Dataset",
    arguments: SllmTrainingArguments,
    output_dir: Path,
    resume: bool,
) -> dict[str, Any]:
    """Trains a model and saves it with its tokenizer.

    Returns:
        What the training took: tokens seen, minutes, seed.
    """
    summary_file = output_dir / SUMMARY
    if resume and summary_file.exists():
        return json.loads(summary_file.read_text(encoding="utf-8"))
    set_seed(arguments.seed)
    trainer = SllmTrainer(
        model=make_model(),
        args=dataclasses.replace(arguments, output_dir=str(output_dir)),
        train_dataset=blocks,
        data_collator=BlockCollator(tokenizer.eos_token_id),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=resume and has_checkpoint(output_dir))
    trainer.save_model()
    summary = {
        "tokens_seen": trainer.state.num_input_tokens_seen,
        "minutes": trainer.stopwatch.seconds / 60,
        "seed": arguments.seed,
    }
    if trainer.is_world_process_zero():
        summary_file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def has_begun(folder: Path) -> bool:
    """Whether a run has left something to go on from."""
    return (folder / SUMMARY).exists() or has_checkpoint(folder)


def has_checkpoint(folder: Path) -> bool:
    """Whether a Trainer can go on from this folder."""
    return folder.is_dir() and get_last_checkpoint(str(folder)) is not None
