"""One training run: the tokenizer, the model and, beside it, the bare backbone; then what each of them reaches."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.integrations import unset_hf_deepspeed_config
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import get_last_checkpoint

from hf_sllm.data import BlockCollator, cut_documents, load_chats, load_documents, make_blocks, spread, train_tokenizer
from hf_sllm.evaluation import bits_per_byte, entropy_floor, reconstruction
from hf_sllm.modeling import SentenceVaeModel, SllmForCausalLM

from .adapters import add_lora, freeze, is_adapted, save_base, store_in_bfloat16
from .curves import write_curves
from .open_trained import open_sentence_vae, open_sllm
from .recipe import ModelArguments, Recipe, SllmTrainingArguments
from .results import Result, print_results, write_results
from .trainer import SllmTrainer

if TYPE_CHECKING:
    from datasets import Dataset

# Written when a model has been trained to the end.
SUMMARY = "training.json"
NAMES = {"sllm": "SLLM", "sentence_vae": "sentence VAE"}


def train(recipe: Recipe, resume: bool = False, console: Console | None = None) -> list[Result]:
    """Trains what a recipe says and measures it.

    The model and its tokenizer are saved in `output_dir`, the baseline, if there is one, in `output_dir/baseline`, the
    figures in `output_dir/results.json`, the curves in `output_dir/curves.csv` and `.png`.

    Args:
        recipe: See `load_recipe`.
        resume: Go on from the last checkpoints in `output_dir`.
        console: Where the table is printed.

    Returns:
        The lines of the table.

    Raises:
        ValueError: If the recipe cannot be carried out, or `output_dir` holds a run that is not to be resumed.
    """
    arguments, data, training = recipe
    is_first = training.process_index == 0
    console, progress = console or Console(), Console(stderr=True, quiet=not is_first)
    output_dir = Path(str(training.output_dir))
    folders = {NAMES[arguments.stage]: output_dir}
    own_shape = arguments.baseline_config is not None or arguments.baseline_model is not None
    baseline_name = "token-level model" if own_shape else "backbone trained"
    if training.baseline:
        folders = {baseline_name: output_dir / "baseline", **folders}
    if not resume and any(has_begun(folder) for folder in (output_dir, output_dir / "baseline")):
        raise ValueError(f"{output_dir} already holds a run: go on with it by --resume, or give another --output-dir.")

    tokenizer, blocks, valid = read_texts(recipe, output_dir, resume)
    make_models = {NAMES[arguments.stage]: lambda: make_model(arguments, tokenizer)}
    if training.baseline:
        baseline = arguments
        if arguments.backbone_config is not None:
            fields = {**arguments.backbone_config, **(arguments.baseline_config or {})}
            baseline = dataclasses.replace(arguments, backbone_config=fields)
        elif arguments.baseline_model is not None:
            baseline = dataclasses.replace(arguments, sllm=None, backbone=arguments.baseline_model)
        make_models[baseline_name] = lambda: make_backbone(baseline, tokenizer)

    def measure(model: PreTrainedModel, show: bool = False) -> dict[str, float]:
        batch_size, show = training.per_device_eval_batch_size, show and is_first and not training.disable_tqdm
        if model.config.model_type == "sentence_vae":
            found = reconstruction(model, tokenizer, valid, batch_size, show)
            return {
                name: getattr(found, name) for name in ("token_accuracy", "next_token_accuracy", "exact_sentences")
            }
        return {"bits_per_byte": bits_per_byte(model, tokenizer, valid, batch_size, show).bits_per_byte}

    def result(name: str, model: PreTrainedModel, summary: dict[str, Any]) -> Result:
        progress.print(f"measuring: {name}")
        model.to(training.device)  # type: ignore[arg-type]
        figures: dict[str, Any] = measure(model, show=True)
        return Result(name, parameters=model.num_parameters(), **figures, **summary)

    results = []
    floor = entropy_floor(valid) if arguments.stage == "sllm" else None
    if floor is not None:
        results.append(Result("floor", floor))
    if arguments.stage == "sllm" and arguments.backbone_config is None:
        name, make = ("backbone before", make_backbone) if arguments.sllm is None else ("SLLM before", make_model)
        results.append(result(name, make(arguments, tokenizer), {"tokens_seen": 0}))
    for name, folder in folders.items():
        progress.print(f"training: {name}")
        summary = train_model(make_models[name], arguments, tokenizer, blocks, training, folder, resume, measure)
        # Read back from where it was saved: what is measured is what a user gets, in full precision.
        results.append(result(name, load_trained(folder, arguments.stage), summary))
    if training.baseline:
        reached = [line.bits_per_byte or math.nan for line in results[-2:]]
        results[-1].ratio = reached[1] / reached[0]
    if is_first:
        write_results(results, output_dir / "results.json")
        write_curves(folders, output_dir)
        print_results(results, f"{data.valid_data}, {len(valid)} documents", console)
    return results


def read_texts(recipe: Recipe, output_dir: Path, resume: bool) -> tuple[PreTrainedTokenizerBase, "Dataset", "Dataset"]:
    """The tokenizer, the blocks to train on, and the documents to measure on."""
    arguments, data, training = recipe
    # Processes that share a disk share what is written: one trains the tokenizer, the others read it.
    with training.main_process_first(local=training.save_on_each_node, desc="reading documents"):
        if data.messages_column is not None:
            tokenizer = make_tokenizer(arguments, None, output_dir, resume)
            column = data.messages_column
            documents = load_chats(data.train_data, tokenizer, data.train_split, column, data.train_limit)
            valid = load_chats(data.valid_data, tokenizer, data.valid_split, column).select_columns("text")
        else:
            documents = load_documents(
                data.train_data, data.train_split, data.text_column, data.train_limit, streaming=data.streaming
            )
            valid = load_documents(data.valid_data, data.valid_split, data.text_column)
        if data.valid_bytes is not None:
            valid = cut_documents(valid, data.valid_bytes)
        valid = spread(valid, data.valid_limit)
        if data.messages_column is None:
            tokenizer = make_tokenizer(arguments, documents, output_dir, resume or not training.should_save)
    config: Any = make_model(arguments, tokenizer).config
    with training.main_process_first(desc="cutting documents into blocks"):
        blocks = make_blocks(documents, tokenizer, config, data.block_size, data.num_proc)
    return tokenizer, blocks, valid


def make_tokenizer(
    arguments: ModelArguments, documents: "Dataset | None", output_dir: Path, reuse: bool
) -> PreTrainedTokenizerBase:
    """The tokenizer that the recipe names, or one trained on the documents, or to `reuse` the one trained before."""
    if arguments.tokenizer_vocab_size is None:
        model = arguments.backbone or arguments.sllm or arguments.sentence_vae
        return AutoTokenizer.from_pretrained(arguments.tokenizer or model)
    if not (reuse and (output_dir / "tokenizer.json").exists()):
        texts = (row["text"] for row in documents or ())
        train_tokenizer(texts, arguments.tokenizer_vocab_size).save_pretrained(output_dir)
    return AutoTokenizer.from_pretrained(output_dir)


def make_backbone(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The backbone as it is before training."""
    # Under DeepSpeed's ZeRO-3 transformers would build it in shards, from which no layers can be copied.
    unset_hf_deepspeed_config()
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


def make_model(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The SLLM, or in its stage the sentence VAE, as it is before training."""
    if arguments.sllm is not None:
        model = open_sllm(arguments.sllm, arguments.sllm_config or {})
        if arguments.lora is not None and is_adapted(model):
            raise ValueError(f"`lora` makes adapters, and {arguments.sllm} has its own: leave it out.")
        return model
    fields = dict(arguments.sllm_config or {})
    if arguments.stage == "sentence_vae" and arguments.sentence_vae is not None:
        return open_sentence_vae(arguments.sentence_vae, fields)
    kind = SllmForCausalLM if arguments.stage == "sllm" else SentenceVaeModel
    if arguments.sentence_vae is not None:
        fields["sentence_vae"] = arguments.sentence_vae
    return kind.from_backbone(
        make_backbone(arguments, tokenizer),
        tokenizer,
        encoder_layers=arguments.encoder_layers,
        decoder_layers=arguments.decoder_layers,
        unit=arguments.unit,
        preset=arguments.preset,
        **fields,
    )


def train_model(
    make_model: Callable[[], PreTrainedModel],
    arguments: ModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    blocks: "Dataset",
    training: SllmTrainingArguments,
    output_dir: Path,
    resume: bool,
    measure: Callable[[PreTrainedModel], dict[str, float]],
) -> dict[str, Any]:
    """Trains a model and saves it with its tokenizer.

    Returns:
        What the training took: tokens seen, minutes, seed.
    """
    summary_file = output_dir / SUMMARY
    if resume and has_ended(output_dir, training):
        return json.loads(summary_file.read_text(encoding="utf-8"))
    set_seed(training.seed)
    model: Any = make_model()
    if arguments.lora is not None:
        with training.main_process_first(local=training.save_on_each_node, desc="saving the base"):
            model = add_lora(model, arguments.lora, output_dir)
    elif is_adapted(model):
        with training.main_process_first(local=training.save_on_each_node, desc="saving the base"):
            save_base(model.get_base_model(), output_dir)
    if arguments.freeze is not None and model.config.model_type in ("sllm", "sentence_vae"):
        freeze(model, arguments.freeze)
    trainer = SllmTrainer(
        model=model,
        args=dataclasses.replace(training, output_dir=str(output_dir)),
        train_dataset=blocks,
        data_collator=BlockCollator(tokenizer.eos_token_id),
        processing_class=tokenizer,
        measure=measure,
    )
    trainer.train(resume_from_checkpoint=resume and has_checkpoint(output_dir))
    if trainer.is_fsdp_enabled:  # checkpoints may be in shards; what is read back is whole
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()
    trainer.save_state()
    summary = {
        "tokens_seen": trainer.state.num_input_tokens_seen,
        "minutes": trainer.stopwatch.seconds / 60,
        "seed": training.seed,
    }
    if trainer.is_world_process_zero():
        if is_adapted(model) and training.bf16:
            store_in_bfloat16(output_dir)
        summary_file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    trainer.accelerator.wait_for_everyone()  # what is saved is there when any process reads it back
    return summary


def load_trained(folder: Path, stage: str) -> PreTrainedModel:
    """What was saved, with its base if it is an adapter."""
    unset_hf_deepspeed_config()  # whole, as in `make_backbone`
    auto_class = AutoModelForCausalLM if stage == "sllm" else AutoModel
    return auto_class.from_pretrained(folder, dtype=torch.float32)


def has_begun(folder: Path) -> bool:
    """Whether a run has left something to go on from."""
    return (folder / SUMMARY).exists() or has_checkpoint(folder)


def has_ended(folder: Path, training: SllmTrainingArguments) -> bool:
    """Whether a model was trained as long as this recipe says.

    Raises:
        ValueError: If it was trained for less, and there is nothing to go on from.
    """
    if not (folder / SUMMARY).exists():
        return False
    state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
    if training.max_steps > 0:
        name, reached, wanted = "max_steps", state.global_step, training.max_steps
    else:
        name, reached, wanted = "num_train_epochs", state.num_train_epochs, math.ceil(training.num_train_epochs)
    if reached < wanted and not has_checkpoint(folder):
        raise ValueError(
            f"`{name}` is {wanted}: the run in {folder} ended at {reached} and left no checkpoint to go on from. "
            "Train in another `output_dir`, with `sllm:` to begin with its model, or from the start."
        )
    return reached >= wanted


def has_checkpoint(folder: Path) -> bool:
    """Whether a Trainer can go on from this folder."""
    return folder.is_dir() and get_last_checkpoint(str(folder)) is not None
