"""How well the decoder does with given latents: token by token, then as means over positions and lengths."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hf_sllm.modeling.sentence_decoder import reconstruction_states
from hf_sllm.modeling.stream_layout import pad_rows

from .sample import Sample

# Sentences written at once.
WRITTEN_AT_ONCE = 256


@dataclass(frozen=True)
class Score:
    """Means over some tokens.

    Attributes:
        tokens: How many.
        nats: Negative log-likelihood of a token, given also the tokens before it that the decoder sees.
        accuracy: Share of the tokens that were the likeliest.
        written: Share of the tokens that are in their places when sentences are written greedily from the latents.
        exact: Share of the sentences that are then written without a mistake; unknown by position.
    """

    tokens: int
    nats: float
    accuracy: float
    written: float | None = None
    exact: float | None = None


@dataclass(frozen=True)
class Reading:
    """What came of giving the decoder certain latents.

    Attributes:
        latents: Which ones, in words.
        noise: Standard deviation of the Gaussian noise added to them, in multiples of each unit's own.
        whole: Over all tokens.
        by_position: Over those at some positions in their sentences: `"1"`, `"2"`, `"3-4"`, `"5-8"`, …
        by_length: Over those of sentences of so many tokens.
    """

    latents: str
    noise: float
    whole: Score
    by_position: dict[str, Score]
    by_length: dict[str, Score]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Reading":
        """The reading of which `dataclasses.asdict` gave these."""
        groups = {name: values[name].items() for name in ("by_position", "by_length")}
        scores = {name: {bucket: Score(**score) for bucket, score in group} for name, group in groups.items()}
        return cls(**{**values, **scores, "whole": Score(**values["whole"])})


@dataclass
class TokenScores:
    """Scores of the `N` tokens and `S` sentences of a sample, on the CPU.

    Attributes:
        nats: `(N,)`, NaN for a token that is not scored.
        correct: `(N,)` whether it was the likeliest.
        written: `(N,)` whether it is in its place in what was written greedily, if that was asked for.
        exact: `(S,)` whether the sentence was then written without a mistake.
    """

    nats: torch.Tensor
    correct: torch.Tensor
    written: torch.Tensor | None = None
    exact: torch.Tensor | None = None


def encode(model: Any, sample: Sample) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mean of each sentence's latents, `(S, num_latents, latent_size)`, and their log-variance if there is one."""
    encoder, table = model.base_model.sentence_encoder, model.get_input_embeddings()
    encoded = [encoder(table(batch.token_ids), batch.layout.token_sentence) for batch in sample.batches]
    means, log_variances = zip(*encoded, strict=True)
    return torch.cat(means), None if log_variances[0] is None else torch.cat(log_variances)


def predict(model: Any, sample: Sample, latents: torch.Tensor) -> torch.Tensor:
    """The backbone's predictions `(J, num_latents, latent_size)` of the sentences that begin: a document's first from
    the start alone, the others from the latents, of `(S, num_latents, latent_size)`, of the sentences before."""
    predictions = []
    sizes = [len(batch.layout.sentence_row) for batch in sample.batches]
    for batch, given in zip(sample.batches, latents.split(sizes), strict=True):
        padded, _ = pad_rows(given, batch.layout.sentence_row, len(batch.input_ids))
        index = torch.arange(padded.shape[1] + 1, device=padded.device)
        is_predicted = index < batch.predictions[:, None]
        predictions.append(model.predict_next_latents(padded, is_predicted[:, 1:])[is_predicted])
    return torch.cat(predictions)


def score_next_sentences(model: Any, sample: Sample, predicted: torch.Tensor | None) -> TokenScores:
    """Each token but a text's first, in the model's own forward pass.

    Args:
        predicted: `(J, num_latents, latent_size)`, which the decoder gets in place of the backbone's predictions.
    """
    nats, correct = [], []
    sizes = [int(batch.predictions.sum()) for batch in sample.batches]
    given: Any = [None] * len(sizes) if predicted is None else predicted.split(sizes)
    for batch, latents in zip(sample.batches, given, strict=True):
        if latents is not None:
            row = torch.repeat_interleave(batch.predictions).to(latents.device)
            latents, _ = pad_rows(latents, row, len(batch.input_ids))
        with latents_replaced(model.base_model.sentence_decoder, latents):
            logits = model(batch.input_ids, batch.attention_mask, use_cache=False).logits
        follows = batch.layout.token_rank > 0
        real = batch.attention_mask.bool()
        batch_nats, batch_correct = score_tokens(logits[:, :-1][real[:, 1:]], batch.token_ids[follows])
        nats.append(batch_nats.new_full(follows.shape, torch.nan).masked_scatter(follows.cpu(), batch_nats))
        correct.append(batch_correct.new_zeros(follows.shape).masked_scatter(follows.cpu(), batch_correct))
    return TokenScores(torch.cat(nats), torch.cat(correct))


@contextmanager
def latents_replaced(decoder: nn.Module, latents: torch.Tensor | None) -> Iterator[None]:
    """Within it, the decoder reads these latents whatever it is given; `None` changes nothing."""

    def replace(module: nn.Module, arguments: tuple) -> tuple | None:
        return None if latents is None else (latents, *arguments[1:])

    handle = decoder.register_forward_pre_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def score_reconstruction(model: Any, sample: Sample, latents: torch.Tensor, write: bool = True) -> TokenScores:
    """Each token, given the latents `(S, num_latents, latent_size)` of its sentence, as in training.

    Args:
        write: Also write each sentence greedily from its latents, without the context that the decoder may have.
    """
    nats, correct = [], []
    # What a model with a backbone learns as an auxiliary is to reconstruct each sentence by itself.
    context_length = 0 if model.config.model_type == "sllm" else None
    sizes = [len(batch.layout.sentence_row) for batch in sample.batches]
    for batch, given in zip(sample.batches, latents.split(sizes), strict=True):
        embeds = model.get_input_embeddings()(batch.token_ids)
        states, _, _ = reconstruction_states(
            model.base_model.sentence_decoder, batch.layout, embeds, given, context_length
        )
        logits = model.compute_logits(states)
        batch_nats, batch_correct = score_tokens(logits, batch.token_ids)
        nats.append(batch_nats)
        correct.append(batch_correct)
    scores = TokenScores(torch.cat(nats), torch.cat(correct))
    if write:
        decode: Callable = model.decode_latents if model.config.model_type == "sllm" else model.decode
        sentences = [sentence.cpu() for part in latents.split(WRITTEN_AT_ONCE) for sentence in decode(part)]
        pairs = list(zip(sample.sentences(), sentences, strict=True))
        scores.written = torch.cat([in_place(original, sentence) for original, sentence in pairs])
        scores.exact = torch.tensor([torch.equal(original, sentence) for original, sentence in pairs])
    return scores


def in_place(original: torch.Tensor, sentence: torch.Tensor) -> torch.Tensor:
    """Whether each token of the original sentence stands at the same place in another one."""
    padding = sentence.new_full((max(len(original) - len(sentence), 0),), -1)
    return torch.cat([sentence, padding])[: len(original)] == original


def score_tokens(logits: torch.Tensor, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats of each token, and whether it is the likeliest, on the CPU."""
    nats = F.cross_entropy(logits.float(), token_ids, reduction="none")
    return nats.cpu(), (logits.argmax(-1) == token_ids).cpu()


def summarize(latents: str, noise: float, sample: Sample, scores: TokenScores) -> Reading:
    """The means of scores."""
    scored = ~scores.nats.isnan()

    def score(tokens: torch.Tensor, sentences: torch.Tensor | None) -> Score:
        def share(values: torch.Tensor | None, chosen: torch.Tensor | None) -> float | None:
            return None if values is None or chosen is None else values[chosen].double().mean().item()

        return Score(
            tokens=int(tokens.sum()),
            nats=scores.nats[tokens].double().mean().item(),
            accuracy=scores.correct[tokens].double().mean().item(),
            written=share(scores.written, tokens),
            exact=share(scores.exact, sentences),
        )

    position, length = bucket(sample.position), bucket(sample.length)
    return Reading(
        latents,
        noise,
        score(scored, torch.ones_like(length).bool()),
        {bucket_name(i): score(scored & (position == i), None) for i in position[scored].unique().tolist()},
        {
            bucket_name(i): score(scored & (length == i)[sample.sentence], length == i)
            for i in length[sample.sentence][scored].unique().tolist()
        },
    )


def bucket(values: torch.Tensor) -> torch.Tensor:
    """0 for 1, 1 for 2, 2 for 3 and 4, 3 for 5 to 8, and so on."""
    return values.double().log2().ceil().long()


def bucket_name(index: int) -> str:
    """`"1"`, `"2"`, `"3-4"`, `"5-8"` and so on."""
    last = 2**index
    return str(last) if index < 2 else f"{last // 2 + 1}-{last}"
