"""How much of a sentence survives its latents: what a model writes back, beside what it was given."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_sllm.data.blocks import cut_at_sentences, document_ids
from hf_sllm.modeling import SentenceLayout
from hf_sllm.modeling.sentence_decoder import reconstruction_states

from .bits_per_byte import LENGTHS
from .loop import evaluation_mode, in_batches, padded

# Sentences are reconstructed one by one, so where a text is cut makes no difference.
BLOCK_SIZE = 512


@dataclass(frozen=True)
class LengthReconstruction:
    """What came back of the sentences of some lengths.

    Attributes:
        shortest, longest: The lengths, in tokens; `None` is without end.
        sentences, tokens: How many there were.
        token_accuracy, exact_sentences: As in `Reconstruction`.
    """

    shortest: int
    longest: int | None
    sentences: int
    tokens: int
    token_accuracy: float
    exact_sentences: float


@dataclass(frozen=True)
class Reconstruction:
    """What was measured.

    Attributes:
        token_accuracy: Share of the tokens that stand where they stood, in sentences written greedily from their
            latents alone. A token left out or added makes all after it wrong.
        next_token_accuracy: Share of the tokens predicted rightly from the latents and the true tokens before.
        exact_sentences: Share of the sentences written back without a fault.
        tokens, sentences: How many there were.
        seconds: Wall time.
        by_sentence_length: The same for sentences of some lengths, the shorter ones first.
        chrf, bleu: Of the sentences as text, 0 to 100: the share of the characters, and of the words, that agree in
            groups of neighbours, as sacrebleu counts it by default. `None` if they were not asked for.
    """

    token_accuracy: float
    next_token_accuracy: float
    exact_sentences: float
    tokens: int
    sentences: int
    seconds: float
    by_sentence_length: tuple[LengthReconstruction, ...]
    chrf: float | None = None
    bleu: float | None = None


@torch.no_grad()
def reconstruction(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Mapping[str, Any]],
    batch_size: int = 16,
    progress: bool = True,
    compare_texts: bool = False,
) -> Reconstruction:
    """Has every sentence of the documents encoded and written back, without the text before it.

    Args:
        model: A `SentenceVaeModel`, or an SLLM that was trained to reconstruct too.
        tokenizer: The model's own.
        documents: Rows with a `text`.
        batch_size: Blocks of 512 tokens at a time.
        progress: Whether to show a progress bar, on standard error.
        compare_texts: Also compute `chrf` and `bleu`, which needs `sacrebleu`.

    Raises:
        ValueError: If the model has not learned to reconstruct, or there is nothing to reconstruct.
        ImportError: If texts are to be compared without `sacrebleu`.
    """
    begun = time.monotonic()
    _check_model(model)
    if compare_texts:
        _import_sacrebleu()
    texts = [document["text"] for document in documents]
    # The start token is no part of any sentence.
    ids = [row[1:] for row in document_ids(texts, tokenizer)]
    config: Any = model.config
    block_size = max(BLOCK_SIZE, config.max_sentence_length)
    blocks = [block for row in ids for block in cut_at_sentences(row, config, block_size)]
    if not blocks:
        raise ValueError("`documents` hold no text: there is nothing to reconstruct.")
    blocks.sort(key=len, reverse=True)
    predicted = tokens = 0
    came_back: list[tuple[int, int, bool]] = []  # of each sentence: tokens, those that are right, whether all of it is
    texts_given: list[str] = []
    texts_written: list[str] = []
    with evaluation_mode(model):
        for batch in in_batches(blocks, batch_size, "Reconstructing", progress):
            input_ids, mask = padded(batch, tokenizer, model.device)
            layout, guesses, written = _reconstruct(model, input_ids, mask)
            token_ids = input_ids.flatten()[layout.token_index]
            predicted += int((guesses == token_ids).sum())
            given = token_ids.split(torch.bincount(layout.token_sentence).tolist())
            for sentence, copy in zip(given, written, strict=True):
                shared = min(len(sentence), len(copy))
                right = int((sentence[:shared] == copy[:shared]).sum())
                came_back.append((len(sentence), right, torch.equal(sentence, copy)))
            tokens += len(layout.token_index)
            if compare_texts:
                texts_given += _texts(given, tokenizer)
                texts_written += _texts(written, tokenizer)
    chrf, bleu = _compare(texts_written, texts_given) if compare_texts else (None, None)
    return Reconstruction(
        sum(right for _, right, _ in came_back) / tokens,
        predicted / tokens,
        sum(exact for *_, exact in came_back) / len(came_back),
        tokens,
        len(came_back),
        time.monotonic() - begun,
        _by_sentence_length(came_back),
        chrf,
        bleu,
    )


def _by_sentence_length(came_back: Sequence[tuple[int, int, bool]]) -> tuple[LengthReconstruction, ...]:
    """From tokens, right ones and exactness of each sentence; lengths that do not occur are left out."""
    rows = []
    for shortest, longest in zip(LENGTHS, [*(first - 1 for first in LENGTHS[1:]), None], strict=True):
        chosen = [row for row in came_back if shortest <= row[0] <= (longest or row[0])]
        if chosen:
            lengths, right, exact = (sum(column) for column in zip(*chosen, strict=True))
            rows.append(
                LengthReconstruction(shortest, longest, len(chosen), lengths, right / lengths, exact / len(chosen))
            )
    return tuple(rows)


def _check_model(model: Any) -> None:
    """Refuses a model whose decoder has not learned to write a sentence from its own latents."""
    kind = model.config.model_type
    if kind not in ("sentence_vae", "sllm"):
        raise ValueError(f"`model` is a {kind!r}: only a sentence VAE or an SLLM writes back what it was given.")
    if kind == "sllm" and model.config.reconstruction_weight == 0:
        raise ValueError(
            "`reconstruction_weight` of this SLLM is 0: it was trained to write the next sentence, not to write one "
            "back. Train with a weight above 0, or measure bits per byte."
        )


def _reconstruct(
    model: Any, input_ids: torch.Tensor, mask: torch.Tensor
) -> tuple[SentenceLayout, torch.Tensor, list[torch.Tensor]]:
    """The sentences of a batch, the likeliest of each of their `(N,)` tokens given the true ones before, and what is
    written from the latents of each."""
    is_vae = model.config.model_type == "sentence_vae"
    parts = model.base_model
    layout = parts.segmenter.layout(input_ids, mask.bool())
    embeds = model.get_input_embeddings()(input_ids.flatten()[layout.token_index])
    latents, _ = parts.sentence_encoder(embeds, layout.token_sentence)
    # What an SLLM learns beside the next sentence is to write each sentence by itself.
    states, _, _ = reconstruction_states(
        parts.sentence_decoder, layout, embeds, latents, context_length=None if is_vae else 0
    )
    guesses = model.compute_logits(states).argmax(-1)
    return layout, guesses, (model.decode if is_vae else model.decode_latents)(latents)


def _texts(sentences: Sequence[torch.Tensor], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in sentences]


def _compare(written: list[str], given: list[str]) -> tuple[float, float]:
    """Of the texts written, their chrF and BLEU against those given."""
    sacrebleu = _import_sacrebleu()
    # It warns of texts that look tokenised; these are as they were.
    bleu = sacrebleu.corpus_bleu(written, [given], force=True)
    return sacrebleu.corpus_chrf(written, [given]).score, bleu.score


def _import_sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError as error:
        raise ImportError('comparing texts needs `sacrebleu`: pip install "hf-sllm[eval]"') from error
    return sacrebleu


__all__ = ["LengthReconstruction", "Reconstruction", "reconstruction"]
