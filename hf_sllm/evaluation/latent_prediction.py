"""How well the latents of the next sentence are foretold (Large Concept Models, arXiv 2412.08821, section 2.4.1).

A low distance is no merit by itself: the mean of all that may follow has the lowest, and is no sentence. So the
distance after writing, and how well a prediction tells its sentence from others, stand beside it, and beside the
prediction stand two that know nothing of the text: the mean of all latents, and the sentence before once more.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_sllm.data.blocks import cut_at_sentences, document_ids
from hf_sllm.modeling import SllmCache
from hf_sllm.modeling.latent_normaliser import LatentNormaliser
from hf_sllm.modeling.stream_layout import pad_rows

from .loop import evaluation_mode, in_batches, padded

# Written sentences that are read again, at most.
MOST_WRITTEN = 1000


@dataclass(frozen=True)
class Foretold:
    """What one way of foretelling latents reaches, and the standard errors over documents.

    Attributes:
        way: "predicted", by the model; "mean", of all latents; or "before", the sentence before once more.
        distance: Root mean square distance from the sentence's latents, each unit in multiples of its spread.
        contrastive: Share of other documents' sentences whose latents lie further from what is foretold than the
            sentence's own; one half is chance.
        contrastive_error: Its standard error.
        round_trip: The distance after a sentence was written from what is foretold, and encoded.
    """

    way: str
    distance: float
    contrastive: float
    contrastive_error: float
    round_trip: float


@dataclass(frozen=True)
class LatentPrediction:
    """What was measured.

    Attributes:
        ways: The model's prediction, and two that know nothing.
        own_round_trip: The distance of a sentence that was written from its own latents: no prediction can be expected
            to come closer.
        paraphrase: How like the most similar sentence before is what is predicted, by cosine, against how like it the
            sentence itself is. Above 1 the prediction repeats what was said.
        sentences: Foretold.
        written: Of these, written and encoded again.
        seconds: Wall time.
    """

    ways: tuple[Foretold, ...]
    own_round_trip: float
    paraphrase: float
    sentences: int
    written: int
    seconds: float


@torch.no_grad()
def latent_prediction(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Mapping[str, Any]],
    batch_size: int = 8,
    block_size: int = 512,
    seed: int = 0,
    progress: bool = True,
) -> LatentPrediction:
    """Predicts the latents of each sentence from the true sentences before it.

    Args:
        model: An SLLM. Its decoder has to read encoded latents too, or distances from them mean nothing.
        tokenizer: Its own.
        documents: Rows with a `text`, held out.
        batch_size: Blocks at a time.
        block_size: Longest block in tokens; a longer document is cut at sentences, and counts as several.
        seed: Of sampled latents, another for each document.
        progress: Whether to show a progress bar, on standard error.

    Raises:
        ValueError: If the model is no SLLM or its decoder never read encoded latents, or there are fewer than two
            documents with two sentences.
    """
    begun = time.monotonic()
    config: Any = model.config
    if config.model_type != "sllm" or (config.has_linear_predictor and config.reconstruction_weight == 0):
        raise ValueError(
            "the decoder of this model never read encoded latents, so its predictions need not be near them. Train an "
            "SLLM with a `latent_predictor`, or with a `reconstruction_weight` above 0."
        )
    rows = document_ids([document["text"] for document in documents], tokenizer)
    blocks = [block for row in rows for block in cut_at_sentences(row, config, block_size)]
    with evaluation_mode(model):
        parts = []
        for first, batch in enumerate(in_batches(blocks, batch_size, "Predicting latents", progress)):
            parts.append(_predict(model, *padded(batch, tokenizer, model.device), seed + first * batch_size))
        own, predicted, before, number = (torch.cat(values) for values in zip(*parts, strict=True))
        kept = (number[:, None] == number).sum(1) > 1
        own, predicted, before, number = own[kept], predicted[kept], before[kept], number[kept]
        if len(number.unique()) < 2:
            raise ValueError("`documents` has fewer than two of at least two sentences each: there are no others.")
        normaliser = LatentNormaliser((config.num_latents, config.latent_size)).to(own.device)
        normaliser.observe(own)

        def standard(latents: torch.Tensor) -> torch.Tensor:
            return normaliser.normalise(latents).flatten(1)

        def after_writing(latents: torch.Tensor) -> float:
            written = model.decode_latents(latents[:MOST_WRITTEN])  # type: ignore[operator]
            return _distance(standard(_encode(model, written)), standard(own)[:MOST_WRITTEN])

        mean: Any = normaliser.center
        ways = {"predicted": predicted, "mean": mean.expand_as(own), "before": before}
        found = []
        for way, latents in ways.items():
            share, error = _contrastive(standard(latents), standard(own), number)
            distance = _distance(standard(latents), standard(own))
            found.append(Foretold(way, distance, share, error, after_writing(latents)))
        return LatentPrediction(
            tuple(found),
            after_writing(own),
            _paraphrase(standard(predicted), standard(own), number),
            len(own),
            min(len(own), MOST_WRITTEN),
            time.monotonic() - begun,
        )


def _predict(model: Any, token_ids: torch.Tensor, mask: torch.Tensor, seed: int) -> tuple[torch.Tensor, ...]:
    """Of the closed sentences of a batch, row after row: their latents, what was predicted of them, the latents of the
    sentence before (the start's before the first), all `(C, num_latents, latent_size)`, and a number for each row."""
    layout, latents = model.model.encode_all(token_ids, mask, None)
    closed = layout.sentence_closed
    latents, row = latents[closed], layout.sentence_row[closed]
    padded_latents, is_sentence = pad_rows(latents, row, len(token_ids))
    cache = SllmCache(model.config)
    cache.latent_seeds = torch.arange(seed, seed + len(token_ids), device=token_ids.device)
    predicted = model.predict_next_latents(padded_latents, is_sentence, cache=cache)[:, :-1][is_sentence]
    start = model.model.start_latents.weight.view(1, 1, *latents.shape[1:]).expand(len(token_ids), -1, -1, -1)
    before = torch.cat([start, padded_latents[:, :-1]], 1)[is_sentence]
    return latents, predicted, before, row + seed


def _encode(model: Any, sentences: list[torch.Tensor]) -> torch.Tensor:
    """The latents `(C, num_latents, latent_size)` of sentences, each by itself."""
    number = torch.repeat_interleave(torch.tensor([len(ids) for ids in sentences])).to(sentences[0].device)
    return model.model.sentence_encoder(model.get_input_embeddings()(torch.cat(sentences)), number)[0]


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Root mean square difference of standard latents, `(C, units)`."""
    return float((one - other).square().mean().sqrt())


def _contrastive(foretold: torch.Tensor, own: torch.Tensor, number: torch.Tensor) -> tuple[float, float]:
    """See `Foretold.contrastive`; ties count half."""
    shares = []
    for one, right, document in zip(foretold, own, number, strict=True):
        others = (own[number != document] - one).norm(dim=1)
        distance = (right - one).norm()
        shares.append((others > distance).double().mean() + 0.5 * (others == distance).double().mean())
    each = torch.stack(shares)
    means = torch.stack([each[number == document].mean() for document in number.unique()])
    return float(each.mean()), float(means.std() / len(means) ** 0.5)


def _paraphrase(predicted: torch.Tensor, own: torch.Tensor, number: torch.Tensor) -> float:
    """See `LatentPrediction.paraphrase`."""
    nearest = []
    for latents in (predicted, own):
        cosine = torch.nn.functional.normalize(latents, dim=1) @ torch.nn.functional.normalize(own, dim=1).T
        order = torch.arange(len(own), device=own.device)
        is_before = (number[:, None] == number) & (order[:, None] > order)
        follows = is_before.any(1)
        nearest.append(cosine.masked_fill(~is_before, -torch.inf).amax(1)[follows].mean())
    return float(nearest[0] / nearest[1])


__all__ = ["Foretold", "LatentPrediction", "latent_prediction"]
