"""Latents made to fit what was read: error regression (PV-RNN, arXiv 1811.01339), at test time and without training.

A prediction says of a sentence what can be known before it begins. Once some of its tokens are there, they tell more.
So latents are sought that explain these tokens and lie near their prediction:

    cost = nats of the tokens + meta_prior * |latents - prediction|² / (2 spread²)

Closed sentences before may be sought anew with it: then their latents explain the tokens and fit the text, and the
backbone reads them in place of the encoded ones. Weights stay as they are.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from hf_sllm.modeling import SllmCache

from .scores import latents_replaced


@dataclass(frozen=True)
class Refined:
    """What `refine_latents` found.

    Attributes:
        latents: `(1, sentences, num_latents, latent_size)` that the decoder reads, of all sentences that have begun:
            the refined ones last, and before them the predicted ones.
        nats_before: Per token of the refined sentences, by their predictions.
        nats: The same by the refined latents.
        cache: What the model has read, but for the last token, with these latents: `generate(input_ids,
            past_key_values=cache)` goes on from it.
    """

    latents: torch.Tensor
    nats_before: float
    nats: float
    cache: SllmCache


def refine_latents(
    model: Any,
    input_ids: torch.Tensor,
    window: int = 0,
    iterations: int = 50,
    learning_rate: float = 0.09,
    meta_prior: float = 1.0,
    spread: torch.Tensor | None = None,
) -> Refined:
    """Seeks latents of the last sentences of a text that explain their tokens, from the predicted ones on, by Adam.

    It takes `iterations` forward and backward passes over the text: it is for research, and not for serving.

    Args:
        model: An SLLM whose predictor gives one answer.
        input_ids: `(1, length)`, of which the last sentence may be open.
        window: How many closed sentences before it are sought anew too. More than 0 needs a backbone that can read
            predictions, and thus a `latent_predictor` of type `mse`.
        iterations: Steps of Adam.
        learning_rate: Of Adam.
        meta_prior: How much it costs to leave the prediction. At 1 it weighs as much as what was read, as Bayes has
            it; much more leaves the predictions as they are.
        spread: `(num_latents, latent_size)` how far from their predictions latents lie. By default it is measured on
            the closed sentences of the text; with a map, whose predictions are messages of their own, it is the spread
            of the predictions.

    Raises:
        ValueError: If the model samples its latents, or an argument cannot be.
    """
    config = model.config
    _check(config, input_ids, window, iterations, meta_prior)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            layout, encoded = model.model.encode_all(input_ids, torch.ones_like(input_ids), None)
            encoded = encoded[layout.sentence_closed][None]  # (1, closed, num_latents, latent_size)
            predicted = model.predict_next_latents(encoded)  # (1, closed + 1, …)
        closed = encoded.shape[1]
        open_tokens = int((~layout.sentence_closed[layout.token_sentence]).sum())
        free = torch.arange(closed + 1, device=input_ids.device) >= closed - window
        if not open_tokens and window == 0:
            raise ValueError("`input_ids` ends where a sentence ends: there is no open one, and `window` is 0.")
        if spread is None:
            spread = _spread(config, encoded, predicted)
        is_seen = free[layout.token_sentence][1:]  # of the tokens that are scored, all but the text's first

        def nats_of(latents: torch.Tensor) -> torch.Tensor:
            with latents_replaced(model.model.sentence_decoder, latents):
                logits = model(input_ids, use_cache=False).logits[0, :-1]
            return F.cross_entropy(logits[is_seen].float(), input_ids[0, 1:][is_seen], reduction="sum")

        sought = predicted[:, free].clone().requires_grad_()
        optimizer = torch.optim.Adam([sought], lr=learning_rate)
        for _ in range(iterations):
            latents = torch.cat([predicted[:, ~free], sought], 1)
            expected = predicted[:, free]
            if window:
                kept = encoded[:, : closed - window] if window < closed else encoded[:, :0]
                expected = model.predict_next_latents(torch.cat([kept, sought[:, :-1]], 1))[:, free]
            far = ((sought - expected) / spread).square().sum() / 2
            (sought.grad,) = torch.autograd.grad(nats_of(latents) + meta_prior * far, [sought])
            optimizer.step()

        with torch.no_grad():
            latents = torch.cat([predicted[:, ~free], sought], 1)
            before, after = (float(nats_of(value)) / max(int(is_seen.sum()), 1) for value in (predicted, latents))
            return Refined(latents, before, after, _read(model, input_ids[:, :-1], latents))
    finally:
        model.train(was_training)


def _read(model: Any, input_ids: torch.Tensor, latents: torch.Tensor) -> SllmCache:
    """The cache after these tokens were read with latents of the sentences that have begun."""
    layout = model.model.segmenter.layout(input_ids, torch.ones_like(input_ids).bool())
    begun = int(layout.sentence_closed.sum()) + 1
    with latents_replaced(model.model.sentence_decoder, latents[:, :begun]):
        return model(input_ids, use_cache=True).past_key_values


def _spread(config: Any, encoded: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """See `refine_latents`.

    Raises:
        ValueError: If the text has too few closed sentences to tell.
    """
    if encoded.shape[1] < 2:
        raise ValueError(
            f"`input_ids` has {encoded.shape[1]} closed sentences: the spread is measured on at least 2: give "
            "`spread`."
        )
    if config.has_linear_predictor:
        return predicted[0].std(0).clamp(min=1e-6)
    return (encoded - predicted[:, :-1])[0].square().mean(0).sqrt().clamp(min=1e-6)


def _check(config: Any, input_ids: torch.Tensor, window: int, iterations: int, meta_prior: float) -> None:
    if config.samples_latents:
        raise ValueError(
            f"`latent_predictor` of this model is of type {config.latent_predictor['type']!r}: it samples, and gives "
            "no one prediction to stay near to. Take a model with a map, or with type 'mse'."
        )
    if input_ids.ndim != 2 or input_ids.shape[0] != 1 or input_ids.shape[1] < 2:
        raise ValueError(f"`input_ids` has the shape {tuple(input_ids.shape)}: give one text of at least two tokens.")
    if window < 0 or (window > 0 and config.has_linear_predictor):
        raise ValueError(
            f"`window` is {window}: it must be at least 0, and 0 for a model whose `latent_predictor` is a map: its "
            "predictions are not what its backbone reads."
        )
    for name, value in {"iterations": iterations, "meta_prior": meta_prior}.items():
        if value <= 0:
            raise ValueError(f"`{name}` is {value}: it must be above 0.")


__all__ = ["Refined", "refine_latents"]
