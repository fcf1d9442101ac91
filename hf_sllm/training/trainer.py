"""A Trainer with a learning rate for the new parts, and an order of examples that depends on the seed alone."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import get_length_grouped_indices

from .recipe import SllmTrainingArguments

# Modules and parameters of an SLLM that no backbone has, whatever they are in; and everything called `*_projection`.
NEW_PARTS = {
    "latent_head",
    "latent_input",
    "latent_norm",
    "latent_output",
    "latent_prefix",
    "latent_queries",
    "sentence_start",
    "start_latents",
    "stop_head",
}


def is_new_part(name: str) -> bool:
    """Whether a parameter belongs to what does not come from the backbone."""
    return any(part in NEW_PARTS or part.endswith("_projection") for part in name.split("."))


class SllmTrainer(Trainer):
    """Trains an SLLM, or a bare backbone in the same way."""

    args: SllmTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.stopwatch = Stopwatch()
        self.add_callback(self.stopwatch)

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

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        # transformers draws this order from the global random state, which depends on what the model drew before.
        if self.args.train_sampling_strategy != "group_by_length":
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


class Stopwatch(TrainerCallback, ExportableState):
    """Seconds of training, over all the sessions of a run."""

    def __init__(self, seconds: float = 0.0):
        self.before = seconds
        self.begun: float | None = None

    @property
    def seconds(self) -> float:
        return self.before + (0.0 if self.begun is None else time.monotonic() - self.begun)

    def state(self) -> dict[str, Any]:
        return {"args": {"seconds": self.seconds}, "attributes": {}}

    def on_train_begin(self, args, state, control, **kwargs):
        self.before = state.stateful_callbacks.get("Stopwatch", self.state())["args"]["seconds"]
        self.begun = time.monotonic()

    def on_train_end(self, args, state, control, **kwargs):
        self.before, self.begun = self.seconds, None
