"""What happens beside the steps of a training run: its time is taken, and the KL term warms up."""

import time
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class Stopwatch(TrainerCallback, ExportableState):
    """Seconds of training, over all the sessions of a run; what is spent on evaluation is left out."""

    def __init__(self, seconds: float = 0.0):
        self.before = seconds
        self.begun: float | None = None

    @property
    def seconds(self) -> float:
        return self.before + (0.0 if self.begun is None else time.monotonic() - self.begun)

    def pause(self) -> None:
        """Stops counting."""
        self.before, self.begun = self.seconds, None

    def go_on(self) -> None:
        """Counts from now on."""
        self.begun = time.monotonic()

    def state(self) -> dict[str, Any]:
        return {"args": {"seconds": self.seconds}, "attributes": {}}

    def on_train_begin(self, args, state, control, **kwargs):
        self.before = state.stateful_callbacks.get("Stopwatch", self.state())["args"]["seconds"]
        self.go_on()

    def on_train_end(self, args, state, control, **kwargs):
        self.pause()


class KlWarmup(TrainerCallback):
    """Raises the weight of the KL term from 0 to the config's over the first steps (arXiv 1511.06349, section 3.1): a
    latent that costs from the first step on is never learned to be used."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        scale = min(1.0, state.global_step / self.steps) if self.steps else 1.0
        for module in model.modules():
            if hasattr(module, "kl_scale"):
                module.kl_scale = scale
