"""What training costs: tokens in a second, of an SLLM and of its bare backbone by turns, and operations per token.
The SLLM also trains on shorter texts, padded and packed."""

import statistics
from dataclasses import dataclass
from itertools import pairwise

import torch
from rich.console import Console
from rich.progress import track
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence
from torch.utils.benchmark import timer
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel


@dataclass(frozen=True)
class TrainingSpeed:
    """What was measured.

    Attributes:
        backbone, sllm: Tokens per second: the median over the steps.
        ratio: The median over the pairs of steps, one of each side after the other.
        padded, packed: Tokens per second of the SLLM on shorter texts, see `cut_unevenly`: each in a row of its own,
            or end to end in the rows of the whole ones.
        packing_ratio: As `ratio`, of packed to padded.
    """

    backbone: float
    sllm: float
    ratio: float
    padded: float
    packed: float
    packing_ratio: float


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
    """Trains both on the same tokens, all weights of each: forward and backward pass and a step of AdamW. The SLLM is
    also trained on these tokens as shorter texts, padded and packed.

    Args:
        token_ids: `(batch, length)`.
        steps: Steps of each that count; one before them does not.
        bf16: Whether matrix products are in bfloat16, by autocast.
    """
    device = token_ids.device
    sides = (backbone, sllm)
    optimizers = [torch.optim.AdamW(side.to(device).train().parameters(), lr=1e-5, fused=True) for side in sides]  # type: ignore[arg-type]
    whole = {"token_ids": token_ids}
    turns = [(0, whole), (1, whole), *((1, batch) for batch in cut_unevenly(token_ids))]
    seconds: list[list[float]] = []
    for _ in track(range(steps + 1), "Training by turns", console=Console(stderr=True), disable=not progress):
        seconds.append([])
        for side, batch in turns:
            begun = timer()  # which waits for the device
            training_step(sides[side], optimizers[side], bf16=bf16, **batch)
            seconds[-1].append(timer() - begun)
    counted = seconds[1:]
    bare, wrapped, padded, packed = (
        token_ids.numel() / statistics.median(times) for times in zip(*counted, strict=True)
    )
    ratio, packing_ratio = (
        statistics.median(times[slow] / times[fast] for times in counted) for slow, fast in ((0, 1), (2, 3))
    )
    return TrainingSpeed(bare, wrapped, ratio, padded, packed, packing_ratio)


def cut_unevenly(token_ids: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Cuts each of the `(batch, length)` texts into one of half its length, one of a quarter, and two of an eighth.

    Returns:
        The arguments of `training_step` that give it these texts padded, and those that give it them packed.
    """
    length = token_ids.shape[1]
    bounds = sorted({0, length // 2, length * 3 // 4, length * 7 // 8, length})
    pieces = [token_ids[:, first:end] for first, end in pairwise(bounds)]
    rows = [row for piece in pieces for row in piece]
    padded = pad_sequence(rows, batch_first=True)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    position_ids = torch.cat([torch.arange(piece.shape[1], device=token_ids.device) for piece in pieces])
    return (
        {"token_ids": padded, "attention_mask": mask},
        {"token_ids": token_ids, "position_ids": position_ids.expand_as(token_ids)},
    )


def training_step(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    token_ids: torch.Tensor,
    bf16: bool,
    **texts: torch.Tensor,
) -> None:
    """One step, as `SllmTrainer` takes it."""
    with torch.autocast(token_ids.device.type, torch.bfloat16, enabled=bf16):
        loss = training_loss(model, token_ids, **texts)
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


def training_loss(model: PreTrainedModel, token_ids: torch.Tensor, **texts: torch.Tensor) -> torch.Tensor:
    """The loss of `(batch, length)` tokens, without logits that nobody reads.

    Args:
        texts: `attention_mask` or `position_ids`, if not each row is a whole text.
    """
    labels = token_ids
    if "attention_mask" in texts:
        labels = labels.masked_fill(texts["attention_mask"] == 0, -100)
    kwargs = {"skip_logits": True} if model.config.model_type == "sllm" else {}
    return model(input_ids=token_ids, labels=labels, use_cache=False, **texts, **kwargs).loss
