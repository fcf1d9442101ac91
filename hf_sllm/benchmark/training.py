"""What training costs: tokens in a second, of an SLLM and of its bare backbone by turns, and operations per token."""

import statistics
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import timer
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel


@dataclass(frozen=True)
class TrainingSpeed:
    """What was measured.

    Attributes:
        backbone, sllm: Tokens per second: the median over the steps.
        ratio: The median over the pairs of steps, one of each side after the other.
    """

    backbone: float
    sllm: float
    ratio: float


@dataclass(frozen=True)
class TrainingReport:
    """A run of the command.

    Attributes:
        title: What was trained on what, in words.
        decoder_layers: Of the SLLM.
        parameters: Of each side.
        speed: What was measured.
    """

    title: str
    decoder_layers: int
    parameters: dict[str, int]
    speed: TrainingSpeed


def measure_training(
    backbone: PreTrainedModel,
    sllm: PreTrainedModel,
    token_ids: torch.Tensor,
    steps: int = 5,
    bf16: bool = True,
    progress: bool = True,
) -> TrainingSpeed:
    """Trains both on the same tokens, all weights of each: forward and backward pass and a step of AdamW.

    Args:
        token_ids: `(batch, length)`.
        steps: Steps of each that count; one before them does not.
        bf16: Whether matrix products are in bfloat16, by autocast.
    """
    device = token_ids.device
    sides = (backbone, sllm)
    optimizers = [torch.optim.AdamW(side.to(device).train().parameters(), lr=1e-5, fused=True) for side in sides]  # type: ignore[arg-type]
    seconds: list[tuple[float, ...]] = []
    for _ in track(range(steps + 1), "Training by turns", console=Console(stderr=True), disable=not progress):
        pair = []
        for side, optimizer in zip(sides, optimizers, strict=True):
            begun = timer()  # which waits for the device
            training_step(side, optimizer, token_ids, bf16)
            pair.append(timer() - begun)
        seconds.append(tuple(pair))
    counted = seconds[1:]
    bare, wrapped = (token_ids.numel() / statistics.median(times) for times in zip(*counted, strict=True))
    ratio = statistics.median(times[0] / times[1] for times in counted)
    return TrainingSpeed(bare, wrapped, ratio)


def training_step(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, token_ids: torch.Tensor, bf16: bool
) -> None:
    """One step, as `SllmTrainer` takes it."""
    with torch.autocast(token_ids.device.type, torch.bfloat16, enabled=bf16):
        loss = training_loss(model, token_ids)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def training_flops(model: PreTrainedModel, token_ids: torch.Tensor) -> int:
    """FLOPs of the forward and the backward pass over `(batch, length)` tokens.

    They are those of all matrix products, as torch's `FlopCounterMode` counts them. It does not know the fused
    attention of CPUs, so attention is computed without it. Pairs of positions that a mask hides are counted too.
    """
    model.train()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        training_loss(model, token_ids).backward()
    model.zero_grad()
    return counter.get_total_flops()


def training_loss(model: PreTrainedModel, token_ids: torch.Tensor) -> torch.Tensor:
    """The loss of `(batch, length)` tokens, without logits that nobody reads."""
    kwargs = {"skip_logits": True} if model.config.model_type == "sllm" else {}
    return model(input_ids=token_ids, labels=token_ids, use_cache=False, **kwargs).loss
