"""A Trainer with a learning rate for the new parts, an order of examples that depends on the seed alone, and an
evaluation that is the caller's.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import IterableDataset, Sampler
from transformers import PreTrainedModel, Trainer
from transformers.trainer_pt_utils import get_length_grouped_indices

from .callbacks import KlWarmup, Stopwatch
from .recipe import SllmTrainingArguments

# Modules and parameters of an SLLM that no backbone has, whatever they are in; and everything called `*_projection`.
NEW_PARTS = {
    "latent_head",
    "latent_input",
    "latent_norm",
    "latent_output",
    "latent_predictor",
    "latent_prefix",
    "latent_queries",
    "memory",
    "next_latent_head",
    "sentence_start",
    "shortlist_head",
    "start_latents",
    "state_gate",
    "stop_head",
}


def is_new_part(name: str) -> bool:
    """Whether a parameter belongs to what does not come from the backbone."""
    return any(part in NEW_PARTS or part.endswith("_projection") for part in name.split("."))


class SllmTrainer(Trainer):
    """Trains an SLLM or a sentence VAE, or a bare backbone in the same way.

    Args:
        measure: Called for each evaluation with the model; returns the figures by name. Without it there is none.
        args, kwargs: Trainer's.
    """

    args: SllmTrainingArguments

    def __init__(
        self, *args: Any, measure: Callable[[PreTrainedModel], dict[str, float]] | None = None, **kwargs: Any
    ):
        # What is evaluated on is `measure`'s own affair, but Trainer wants to be given something.
        kwargs.setdefault("eval_dataset", [])
        super().__init__(*args, **kwargs)
        self.measure = measure
        self.stopwatch = Stopwatch()
        self.add_callback(self.stopwatch)
        self.add_callback(KlWarmup(self.args.kl_warmup_steps))
        self.loss_terms: dict[str, torch.Tensor] = {}
        self.steps_of_terms = 0

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Groups parameters by whether they are new and whether they decay: norms, biases and embeddings do not."""
        if self.optimizer is None:
            module: nn.Module = model or self.model  # type: ignore[assignment]
            tables = [table for table in module.modules() if isinstance(table, nn.Embedding)]
            embeddings = {id(parameter) for table in tables for parameter in table.parameters()}
            decaying = set(self.get_decay_parameter_names(module))
            rates = {False: self.args.learning_rate, True: self.args.learning_rate}
            if self.args.new_parts_learning_rate is not None:
                rates[True] = self.args.new_parts_learning_rate
            groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    decays = name in decaying and id(parameter) not in embeddings
                    groups.setdefault((is_new_part(name), decays), []).append(parameter)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args)
            # The backbone's rate comes first, for it is the first one that gets logged.
            self.optimizer = optimizer_class(
                [
                    {
                        "params": groups[new, decays],
                        "lr": rates[new],
                        "weight_decay": self.args.weight_decay if decays else 0.0,
                    }
                    for new, decays in sorted(groups)
                ],
                **options,
            )
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        language_model: Any = self.model
        if language_model.config.model_type not in ("sllm", "sentence_vae"):
            # Padding is on the right, where no token looks. With a mask, padding that sees nothing but padding in its
            # window would be a softmax over nothing, and on a GPU NaN.
            inputs = {name: values for name, values in inputs.items() if name != "attention_mask"}
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # In training nobody reads the logits, and those of a whole batch are the largest tensor there is.
        inputs = {**inputs, "skip_logits": not return_outputs}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if language_model.training:
            for name, term in outputs.losses.items():
                self.loss_terms[name] = self.loss_terms.get(name, 0.0) + term.detach()
            self.steps_of_terms += 1
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the terms of the loss, where it has more than one: of this process, averaged since the last time."""
        if "loss" in logs and self.loss_terms:
            if len(self.loss_terms) > 1:
                # Each process and each of the accumulated batches has its share of the mean over all tokens.
                scale = self.args.gradient_accumulation_steps * self.args.world_size / self.steps_of_terms
                logs.update({f"loss_{name}": term.item() * scale for name, term in self.loss_terms.items()})
            self.loss_terms, self.steps_of_terms = {}, 0
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Logs what `measure` finds."""
        if self.measure is None:
            return {}
        self.stopwatch.pause()
        figures = self.measure(self.accelerator.unwrap_model(self.model))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.stopwatch.go_on()
        return metrics

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        # transformers draws this order from the global random state, which depends on what the model drew before.
        streamed = isinstance(self.train_dataset, IterableDataset)
        if streamed or self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        blocks: Any = self.train_dataset
        return SeededLengthGroupedSampler(blocks["length"][:], batch_size, seed)


class SeededLengthGroupedSampler(Sampler[int]):
    """Examples of similar length together, in an order that depends on the seed and the epoch alone: so that every
    model sees the same, and a resumed run goes on where it stopped.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate as each epoch begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        indices = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        # Within its stretch of the epoch that goes from long to short; batches are learned from in no such order.
        batches = [indices[first : first + self.batch_size] for first in range(0, len(indices), self.batch_size)]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [batch for batch in batches if len(batch) < self.batch_size]
        order = torch.randperm(len(full), generator=generator).tolist()
        return iter([index for batch in [*(full[i] for i in order), *rest] for index in batch])
