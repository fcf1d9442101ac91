"""How well the latents of the next sentence are foretold (Large Concept Models, arXiv 2412.08821, section 2.4.1).

A low distance is no merit by itself: the mean of all that may follow has the lowest, and is no sentence. So there are
also the distance after writing, how well a prediction tells its sentence from others, and what a second language model
makes of what is written. Beside the prediction stand two that know nothing of the text: the mean of all latents, and
the sentence before once more.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_sllm.data import start_token_id
from hf_sllm.data.blocks import cut_at_sentences, document_ids
from hf_sllm.modeling import SllmCache
from hf_sllm.modeling.latent_normaliser import LatentNormaliser
from hf_sllm.modeling.stream_layout import pad_rows

from .continuations import continuation_nats
from .likelihood import default_window
from .loop import evaluation_mode, in_batches, padded

# Written sentences that are read again, at most.
MOST_WRITTEN = 1000
# How many sentences before one the judge reads.
SENTENCES_BEFORE = 10


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
        coherence: How many nats per token the sentences before make what is written likelier to the judge, see
            `coherence`; `None` without one.
        coherence_error: Its standard error.
    """

    way: str
    distance: float
    contrastive: float
    contrastive_error: float
    round_trip: float
    coherence: float | None = None
    coherence_error: float | None = None


@dataclass(frozen=True)
class LatentPrediction:
    """What was measured.

    Attributes:
        ways: The model's prediction, and two that know nothing.
        own_round_trip: The distance of a sentence that was written from its own latents: no prediction can be expected
            to come closer.
        own_coherence: The coherence of the sentences of the text themselves; `None` without a judge.
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
    own_coherence: float | None = None


@torch.no_grad()
def latent_prediction(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Mapping[str, Any]],
    batch_size: int = 8,
    block_size: int = 512,
    seed: int = 0,
    progress: bool = True,
    judge: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
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
        judge: A causal language model that did not learn from this one, and its tokenizer: what it makes of the
            sentences that are written.

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
        *tensors, tokens = zip(*parts, strict=True)
        own, predicted, before, number = map(torch.cat, tensors)
        texts = tokenizer.batch_decode([ids for part in tokens for ids in part], skip_special_tokens=True)
        kept = (number[:, None] == number).sum(1) > 1
        own, predicted, before, number = own[kept], predicted[kept], before[kept], number[kept]
        texts = [text for text, is_kept in zip(texts, kept.tolist(), strict=True) if is_kept]
        if len(number.unique()) < 2:
            raise ValueError("`documents` has fewer than two of at least two sentences each: there are no others.")
        normaliser = LatentNormaliser((config.num_latents, config.latent_size)).to(own.device)
        normaliser.observe(own)

        def standard(latents: torch.Tensor) -> torch.Tensor:
            return normaliser.normalise(latents).flatten(1)

        def write(latents: torch.Tensor) -> list[torch.Tensor]:
            return model.decode_latents(latents[:MOST_WRITTEN])  # type: ignore[operator]

        def after_writing(written: list[torch.Tensor]) -> float:
            return _distance(standard(_encode(model, written)), standard(own)[:MOST_WRITTEN])

        def judged(sentences: list[str]) -> tuple[float | None, float | None]:
            if judge is None:
                return None, None
            return coherence(*judge, texts, sentences, number.tolist(), batch_size, progress)

        mean: Any = normaliser.center
        ways = {"predicted": predicted, "mean": mean.expand_as(own), "before": before}
        found = []
        for way, latents in ways.items():
            told, error = _contrastive(standard(latents), standard(own), number)
            distance, written = _distance(standard(latents), standard(own)), write(latents)
            sentences = tokenizer.batch_decode([ids.tolist() for ids in written], skip_special_tokens=True)
            found.append(Foretold(way, distance, told, error, after_writing(written), *judged(sentences)))
        return LatentPrediction(
            tuple(found),
            after_writing(write(own)),
            _paraphrase(standard(predicted), standard(own), number),
            len(own),
            min(len(own), MOST_WRITTEN),
            time.monotonic() - begun,
            judged(texts[:MOST_WRITTEN])[0],
        )


def coherence(
    judge: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    sentences: Sequence[str],
    number: Sequence[int],
    batch_size: int = 8,
    progress: bool = True,
) -> tuple[float, float]:
    """How many nats per token likelier a language model finds sentences after those that stand before them, than by
    themselves: their mutual information, as arXiv 2412.08821 has it. It is 0 for what does not belong here.

    Args:
        judge: The language model.
        tokenizer: Its own.
        texts: The sentences of all documents.
        sentences: What is written in place of the first of them. Where that is no text, it is left out.
        number: Of the document of each of `texts`.
        batch_size: Sentences at a time.
        progress: Whether to show a progress bar, on standard error.

    Returns:
        The mean over sentences, and its standard error over documents.

    Raises:
        ValueError: If no sentence has one before it.
    """
    start, window = start_token_id(tokenizer), default_window(judge)
    pairs, document = [], []
    for index, sentence in enumerate(sentences):
        first = max(number.index(number[index]), index - SENTENCES_BEFORE)
        # As some tokenizers decode them, sentences begin with a space, and as others do, they do not.
        said = " ".join(text.strip() if place else text.rstrip() for place, text in enumerate(texts[first:index]))
        context, ids = tokenizer([said, sentence], add_special_tokens=False)["input_ids"]
        if context and 0 < len(ids) < window:
            # By the same tokens both times. What does not fit into the judge's window is its beginning.
            pairs += [([start, *context[-(window - len(ids)) :]], ids), ([start], ids)]
            document.append(number[index])
    if not pairs:
        raise ValueError("`documents` has no sentence with text after another one: there is nothing to judge.")
    nats = continuation_nats(judge, tokenizer, pairs, batch_size, "Judging", progress)
    after, alone = torch.tensor(nats).view(-1, 2).T
    gain = (alone - after) / torch.tensor([len(ids) for _, ids in pairs[::2]])
    return _mean_of_documents(gain, torch.tensor(document))


def _predict(model: Any, token_ids: torch.Tensor, mask: torch.Tensor, seed: int) -> tuple[Any, ...]:
    """Of the closed sentences of a batch, row after row: their latents, what was predicted of them, the latents of the
    sentence before (the start's before the first), all `(C, num_latents, latent_size)`, the number of their row, and
    their tokens."""
    layout, latents = model.model.encode_all(token_ids, mask, None)
    closed = layout.sentence_closed
    latents, row = latents[closed], layout.sentence_row[closed]
    padded_latents, is_sentence = pad_rows(latents, row, len(token_ids))
    cache = SllmCache(model.config)
    cache.latent_seeds = torch.arange(seed, seed + len(token_ids), device=token_ids.device)
    predicted = model.predict_next_latents(padded_latents, is_sentence, cache=cache)[:, :-1][is_sentence]
    start = model.model.start_latents.weight.view(1, 1, *latents.shape[1:]).expand(len(token_ids), -1, -1, -1)
    before = torch.cat([start, padded_latents[:, :-1]], 1)[is_sentence]
    sizes = torch.bincount(layout.token_sentence, minlength=len(closed)).tolist()
    sentences = token_ids.flatten()[layout.token_index].split(sizes)
    tokens = [ids.tolist() for ids, is_closed in zip(sentences, closed.tolist(), strict=True) if is_closed]
    return latents, predicted, before, row + seed, tokens


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
    return _mean_of_documents(torch.stack(shares), number)


def _mean_of_documents(each: torch.Tensor, number: torch.Tensor) -> tuple[float, float]:
    """The mean, and its standard error over documents of these numbers."""
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


__all__ = ["Foretold", "LatentPrediction", "coherence", "latent_prediction"]
