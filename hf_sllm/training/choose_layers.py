"""Which of a backbone's layers a sentence decoder should begin with.

A decoder has few of the backbone's layers, and most choices of them alone are worse than guessing: for a start, those
are wanted that still predict text when all others are left out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn
from transformers import PreTrainedModel

from hf_sllm.evaluation.loop import evaluation_mode


@dataclass(frozen=True)
class LayerChoice:
    """Layers that were kept.

    Attributes:
        layers: Their numbers, in order.
        nats: Mean negative log-likelihood of a token with these layers alone.
    """

    layers: tuple[int, ...]
    nats: float


@torch.no_grad()
def choose_layers(
    backbone: PreTrainedModel, token_ids: torch.Tensor, keep: int = 1, progress: bool = True
) -> list[LayerChoice]:
    """Leaves out one layer after the other, each time the one that is missed least.

    So each choice holds those after it. It takes as many passes over the text as there are layers, squared, and half
    of that.

    Args:
        backbone: A causal language model.
        token_ids: `(batch, length)`: a few hundred tokens tell enough.
        keep: How many layers the last choice has.
        progress: Whether to show a progress bar, on standard error.

    Returns:
        A choice for each number of layers, all of them first.

    Raises:
        ValueError: If `keep` is not one to as many as there are.
    """
    stack = layers_of(backbone)
    if not 1 <= keep <= len(stack):
        raise ValueError(f"`keep` is {keep}: the backbone has {len(stack)} layers, keep 1 to that many.")

    def nats(layers: tuple[int, ...]) -> float:
        with only(stack, layers):
            return backbone(token_ids, labels=token_ids, use_cache=False).loss.item()

    everything = tuple(range(len(stack)))
    bar = Progress(console=Console(stderr=True), disable=not progress, transient=True)
    with evaluation_mode(backbone), bar:
        choices = [LayerChoice(everything, nats(everything))]
        task = bar.add_task("Leaving out layers", total=sum(range(keep + 1, len(stack) + 1)))
        while len(choices[-1].layers) > keep:
            tried = []
            for layer in choices[-1].layers:
                rest = tuple(other for other in choices[-1].layers if other != layer)
                tried.append(LayerChoice(rest, nats(rest)))
                bar.advance(task)
            choices.append(min(tried, key=lambda choice: choice.nats))
    return choices


def layers_of(backbone: PreTrainedModel) -> nn.ModuleList:
    """The list of a model's layers, whatever it is called.

    Raises:
        ValueError: If there is none.
    """
    count = backbone.config.get_text_config(decoder=True).num_hidden_layers
    for module in backbone.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"`backbone` is a {type(backbone).__name__}: it has no list of its {count} layers.")


@contextmanager
def only(stack: nn.ModuleList, layers: tuple[int, ...]) -> Iterator[None]:
    """Within it, the other layers hand on what they get."""

    def hand_on(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states

    left_out = [layer for index, layer in enumerate(stack) if index not in set(layers)]
    try:
        for layer in left_out:
            layer.forward = hand_on
        yield
    finally:
        for layer in left_out:
            del layer.forward  # its class's is back
