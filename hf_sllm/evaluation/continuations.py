"""How likely a model finds given continuations of given contexts."""

from collections import defaultdict

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .likelihood import default_window
from .loop import evaluation_mode, in_batches, padded


@torch.no_grad()
def continuation_nats(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[tuple[list[int], list[int]]],
    batch_size: int,
    title: str,
    progress: bool,
) -> list[float]:
    """Negative log-likelihood in nats of each continuation after its context, at the precision of the weights.

    The model reads all but a continuation's last token, so one-token continuations of a context share a row.
    """
    rows: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, (context, continuation) in enumerate(pairs):
        rows[(*context, *continuation[:-1])].append(index)
    # Long ones first: what does not fit into memory fails at once.
    ordered = sorted(rows, key=len, reverse=True)
    if len(ordered[0]) > default_window(model):
        raise ValueError(
            f"a context has {len(ordered[0])} tokens, and the model reads {default_window(model)} at once "
            "(`max_position_embeddings`): give smaller numbers of sentences."
        )
    nats = [0.0] * len(pairs)
    with evaluation_mode(model):
        for batch in in_batches(ordered, batch_size, title, progress):
            input_ids, mask = padded(batch, tokenizer, model.device)
            with torch.autocast(model.device.type, enabled=False):
                logits = model(input_ids, attention_mask=mask, use_cache=False).logits
            for row, row_logits in zip(batch, logits, strict=True):
                for index in rows[row]:
                    context, continuation = pairs[index]
                    scored = row_logits[len(context) - 1 : len(row)].float()
                    wanted = torch.tensor(continuation, device=scored.device)
                    nats[index] = F.cross_entropy(scored, wanted, reduction="none").double().sum().item()
    return nats


__all__ = ["continuation_nats"]
