"""Which attention heads do a task: found from examples where it is done and others, alike but for that.

By ablation (the default), which is exact and costs a forward pass for each head; by the difference of mean outputs,
which is cheap; or by discrete codes of the outputs (O'Neill and Bui 2024, arXiv 2405.12522), which is an experiment:
on planted circuits it finds less than the difference, and on a model whose heads are known by ablation no more than
chance (see docs/interpretability-figures.md).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

# The scores of a head, each larger for what rather belongs to a circuit.
SCORES = ("ablation", "difference", "standardized", "norm", "codes")

# The settings of the paper for its autoencoder of head outputs.
CODES = 200
SPARSITY = 0.02
CODE_EXAMPLES = 10
CODE_STEPS = 500


@dataclass(frozen=True)
class Head:
    """An attention head.

    Attributes:
        layer: The name of its attention module.
        index: Its number there.
        scores: By name; `ablation` is the rise in the loss on positives, in its unit.
    """

    layer: str
    index: int
    scores: dict[str, float]


@dataclass(frozen=True)
class Attention:
    """An attention module: the linear map `(heads * head_dim) -> width` that ends it, and how many heads it has."""

    name: str
    output: nn.Module
    heads: int


def find_heads(
    model: nn.Module,
    positives: Any,
    negatives: Any,
    by: str = "ablation",
    part: str = "language_model",
    positions: str | slice = "mean",
    loss: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    heads: int | None = None,
    seed: int = 0,
) -> list[Head]:
    """Ranks the attention heads of a part of a model by how much they belong to a task.

    Args:
        model: The model.
        positives, negatives: Token ids `(E, length)` of examples where the task is done, and of others. What
            another `loss` takes may be anything; the part has then to see as many positions in both.
        by: The score by which they are ranked; all of them are in the result.
        part: Name of a submodule of the model or of its base model; of an SLLM's backbone the positions are sentences.
        positions: What is compared of an example's positions: their mean, `"last"`, or a slice of them.
        loss: Of the model and of examples, a scalar. By default the mean nats of the next token.
        heads: How many each attention module has; by default what the part's config says.
        seed: Of the autoencoder's codes.

    Raises:
        ValueError: If `by`, `part` or `positions` is unknown, the part has no attention, or the outputs of heads on
            positives and negatives have different shapes.
    """
    if by not in SCORES:
        raise ValueError(f"`by` is {by!r}: it is one of {', '.join(SCORES)}.")
    if positions not in ("mean", "last") and not isinstance(positions, slice):
        raise ValueError(f'`positions` is {positions!r}: it is "mean", "last" or a slice.')
    loss = loss or next_token_loss
    modules = attentions(model, part, heads)
    with evaluating(model), torch.no_grad():
        inside, clean = head_inputs(model, modules, positives, loss)
        outside, _ = head_inputs(model, modules, negatives, loss)
        found: list[tuple[torch.Tensor, ...]] = []
        for at, module in enumerate(modules):
            if inside[at].shape[1:] != outside[at].shape[1:]:
                raise ValueError(
                    f"`positives` and `negatives` give {module.name} inputs of {tuple(inside[at].shape)} and "
                    f"{tuple(outside[at].shape)}: give examples of one length."
                )
            mean = torch.cat([inside[at], outside[at]]).mean(0)
            rises = []
            for index in range(module.heads):
                with ablated([(module, index, mean)]):
                    rises.append(float(loss(model, positives)) - clean)
            vectors = [head_outputs(module, inputs, positions) for inputs in (inside[at], outside[at])]
            found.append((torch.tensor(rises), *vectors))
    own, others = (torch.cat([one[place] for one in found], 1) for place in (1, 2))
    scores = {"ablation": torch.cat([one[0] for one in found]), **contrast_heads(own, others, seed)}
    names = [(module.name, index) for module in modules for index in range(module.heads)]
    ranked = [
        Head(name, index, {key: float(values[at]) for key, values in scores.items()})
        for at, (name, index) in enumerate(names)
    ]
    return sorted(ranked, key=lambda head: -head.scores[by])


def joint_ablation(
    model: nn.Module,
    positives: Any,
    negatives: Any,
    chosen: Sequence[Head],
    part: str = "language_model",
    random_sets: int = 60,
    loss: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    heads: int | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """What ablating some heads together costs on positives, and the share of random sets of as many that cost less.

    A ranking whose first heads do not cost more than .95 of the random sets has not found a circuit.
    """
    loss = loss or next_token_loss
    modules = attentions(model, part, heads)
    with evaluating(model), torch.no_grad():
        inside, clean = head_inputs(model, modules, positives, loss)
        outside, _ = head_inputs(model, modules, negatives, loss)
        means = {m.name: torch.cat(pair).mean(0) for m, *pair in zip(modules, inside, outside, strict=True)}
        everything = [(module, index) for module in modules for index in range(module.heads)]
        by_name = {(module.name, index): (module, index) for module, index in everything}

        def cost(members: Sequence[tuple[Attention, int]]) -> float:
            with ablated([(module, index, means[module.name]) for module, index in members]):
                return float(loss(model, positives)) - clean

        own = cost([by_name[head.layer, head.index] for head in chosen])
        generator = torch.Generator().manual_seed(seed)
        draws = [torch.randperm(len(everything), generator=generator)[: len(chosen)] for _ in range(random_sets)]
        below = [cost([everything[i] for i in draw.tolist()]) < own for draw in draws]
    return own, sum(below) / len(below)


def contrast_heads(positives: torch.Tensor, negatives: torch.Tensor, seed: int = 0) -> dict[str, torch.Tensor]:
    """Scores `(H,)` of heads from their outputs alone.

    Args:
        positives, negatives: `(E, H, width)`.
        seed: Of the autoencoder's codes.

    Returns:
        `difference` of the means; `standardized`, the same over the deviation of all; `norm` on positives; `codes`,
        the kinds of code that only positives have.
    """
    difference = (positives.mean(0) - negatives.mean(0)).norm(dim=-1)
    spread = torch.cat([positives - positives.mean(0), negatives - negatives.mean(0)])
    deviation = spread.square().sum(-1).mean(0).sqrt().clamp_min(1e-12)
    codes = head_codes(torch.cat([positives, negatives]), len(positives), seed)
    unique = [len(set(own) - set(others)) for own, others in zip(*split_codes(codes, len(positives)), strict=True)]
    return {
        "difference": difference,
        "standardized": difference / deviation,
        "norm": positives.norm(dim=-1).mean(0),
        "codes": torch.tensor(unique).float(),
    }


def split_codes(codes: torch.Tensor, count: int) -> tuple[list[list[int]], list[list[int]]]:
    """For each head the codes of positives, which are the first, and of negatives."""
    return codes[:count].T.tolist(), codes[count:].T.tolist()


@torch.enable_grad()
def head_codes(outputs: torch.Tensor, positives: int, seed: int = 0) -> torch.Tensor:
    """Codes `(E, H)` of head outputs `(E, H, width)`: the strongest feature of one sparse autoencoder of all heads,
    fit on ten examples of both kinds (section 3 of arXiv 2405.12522)."""
    generator = torch.Generator().manual_seed(seed)
    half = CODE_EXAMPLES // 2
    chosen = torch.cat(
        [
            torch.randperm(positives, generator=generator)[:half],
            positives + torch.randperm(len(outputs) - positives, generator=generator)[:half],
        ]
    )
    data = outputs[chosen].flatten(0, 1).float().cpu()  # (10 H, width)
    width = data.shape[-1]
    weights = F.normalize(torch.randn(CODES, width, generator=generator), dim=-1)
    encoder, decoder = nn.Parameter(weights.clone()), nn.Parameter(weights.clone())
    bias, centre = nn.Parameter(torch.zeros(CODES)), nn.Parameter(data.mean(0))
    optimizer = torch.optim.Adam([encoder, decoder, bias, centre], lr=1e-3)

    def features(vectors: torch.Tensor) -> torch.Tensor:
        return F.relu((vectors - centre) @ F.normalize(encoder, dim=-1).T + bias)

    for _ in range(CODE_STEPS):
        found = features(data)
        rebuilt = found @ F.normalize(decoder, dim=-1) + centre
        objective = (rebuilt - data).square().mean() + SPARSITY * found.sum(-1).mean()
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
    with torch.no_grad():
        return features(outputs.float().cpu()).argmax(-1)


def attentions(model: nn.Module, part: str, heads: int | None = None) -> list[Attention]:
    """The attention modules of a part: modules named for it, with a linear map that ends them.

    Raises:
        ValueError: If there is no such part, or it has no attention.
    """
    whole = getattr(model, "base_model", model)
    names = [name for name in (part, f"model.{part}", f"{part}.model") if part]
    owners = [(owner, name) for owner in (whole, model) for name in names]
    root = next((owner.get_submodule(name) for owner, name in owners if has(owner, name)), model if not part else None)
    if root is None:
        raise ValueError(f"`part` is {part!r}: the model has no such submodule.")
    config = next(
        (m.config for m in root.modules() if hasattr(getattr(m, "config", None), "num_attention_heads")), None
    )
    count = heads or getattr(config, "num_attention_heads", None)
    found = []
    for name, module in root.named_modules():
        if "attn" in name.rsplit(".", 1)[-1] or "attention" in name.rsplit(".", 1)[-1]:
            linear = [child for child in module.children() if is_linear(child)]
            if linear and count:
                found.append(Attention(name, linear[-1], count))
    if not found:
        raise ValueError(f"`part` is {part!r}: it has no attention modules whose heads are known; give `heads`.")
    return found


def has(owner: nn.Module, name: str) -> bool:
    """Whether a module has a submodule of that name."""
    return any(own == name for own, _ in owner.named_modules())


def is_linear(module: nn.Module) -> bool:
    """Linear maps, and GPT-2's, whose weight is transposed."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def head_inputs(
    model: nn.Module, modules: Sequence[Attention], examples: Any, loss: Callable[[nn.Module, Any], torch.Tensor]
) -> tuple[list[torch.Tensor], float]:
    """What each attention's last linear map is given, `(E, positions, heads * head_dim)`, and the loss."""
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        module.output.register_forward_pre_hook(lambda _, inputs, at=at: seen.update({at: inputs[0]}))
        for at, module in enumerate(modules)
    ]
    try:
        value = float(loss(model, examples))
    finally:
        for hook in hooks:
            hook.remove()
    return [seen[at] for at in range(len(modules))], value


def head_outputs(module: Attention, inputs: torch.Tensor, positions: str | slice) -> torch.Tensor:
    """Each head's output `(E, heads, width)` in the residual stream, of inputs `(E, positions, heads * head_dim)`."""
    if positions == "last":
        inputs = inputs[:, -1]
    else:  # the map is linear: the mean may be taken before it
        inputs = (inputs[:, positions] if isinstance(positions, slice) else inputs).mean(1)
    weight = module.output.weight
    assert isinstance(weight, torch.Tensor)
    weight = weight.T if isinstance(module.output, nn.Linear) else weight  # (heads * head_dim, width)
    split = weight.unflatten(0, (module.heads, -1))
    return torch.einsum("ehk,hkw->ehw", inputs.unflatten(-1, (module.heads, -1)), split)


@contextmanager
def ablated(heads: Sequence[tuple[Attention, int, torch.Tensor]]) -> Iterator[None]:
    """Within it, heads give their means over examples at each position, of `(positions, heads * head_dim)`."""
    hooks = []
    for module, index, mean in heads:
        width = mean.shape[-1] // module.heads
        part = slice(index * width, (index + 1) * width)

        def replace(_: nn.Module, inputs: tuple, part: slice = part, mean: torch.Tensor = mean) -> tuple:
            given = inputs[0].clone()
            given[..., part] = mean[..., part]
            return given, *inputs[1:]

        hooks.append(module.output.register_forward_pre_hook(replace))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it, nothing is dropped."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


def next_token_loss(model: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """Mean nats of the next token, of token ids `(E, length)`."""
    output = model(input_ids)
    logits = getattr(output, "logits", output)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), input_ids[:, 1:].flatten())


__all__ = ["Head", "contrast_heads", "find_heads", "head_codes", "joint_ablation"]
