"""The negative log-likelihood of documents, token by token, and how probable a model found it that a sentence closes.

A document is scored after one start token, its first token and its end included, and each token once. One that is
longer than the model reads at once is read in windows that slide. Nothing here knows which kind of causal language
model it scores.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_sllm.data.blocks import document_ids
from hf_sllm.data.statistics import ids_and_bytes
from hf_sllm.modeling import SentenceSegmenter

from .loop import evaluation_mode, in_batches, padded

logger = logging.get_logger(__name__)

# What a model reads at once if its config does not say how much it can.
DEFAULT_WINDOW = 2048

# Probabilities that exist at once beside the model's own logits.
PROBABILITIES_AT_ONCE = 2**24


@dataclass(frozen=True)
class DocumentScores:
    """The `N` tokens scored of one document: its own and the end of text; the start token is not among them.

    All tensors are on the CPU. Those about sentences are `None` if no rule was given.

    Attributes:
        index: Which of the documents it is.
        bytes: UTF-8 bytes of its text.
        token_ids: `(N,)`.
        nats: `(N,)` negative log-likelihood of each token, in float64.
        token_bytes: `(N,)` how many of the bytes each token stands for; the end of text has what no token does, which
            is none with most tokenizers. `None` if the tokenizer is not a fast one.
        close_probability: `(N,)` the model's probability, before it reads the token, that it closes its sentence: that
            of all tokens which would. 1 where the sentence has then reached the maximum length.
        closes: `(N,)` whether it closes its sentence.
        forced: `(N,)` whether any token would.
        sentence: `(N,)` its sentence, counted from 0.
    """

    index: int
    bytes: int
    token_ids: torch.Tensor
    nats: torch.Tensor
    token_bytes: torch.Tensor | None = None
    close_probability: torch.Tensor | None = None
    closes: torch.Tensor | None = None
    forced: torch.Tensor | None = None
    sentence: torch.Tensor | None = None


class Window(NamedTuple):
    """The model reads the document's tokens from `begin` up to `end`, the start token being number 0. Scored are the
    `scored` tokens up to number `end`, that is all that the last so many of those predict."""

    document: int
    begin: int
    end: int
    scored: int


def score_documents(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Mapping[str, Any]],
    rule: PreTrainedConfig | None = None,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> Iterator[DocumentScores]:
    """Scores documents; an empty one has its end of text.

    Until the last document is done the model is in evaluation mode. It computes at the precision of its weights, even
    inside an autocast; load it in float32 for a figure that counts.

    Args:
        model: Any causal language model.
        tokenizer: The model's own.
        documents: Rows with a `text`: a `datasets.Dataset`, or a list of dicts.
        rule: Says where sentences end: an SLLM's config, or what `hf_sllm.data.sentence_rule` returns. It is applied
            to whole documents, so it is the same for each model and window.
        window: Tokens that the model reads at once. To compare models give all the same: see `default_window`.
        stride: New tokens scored in each window after a document's first, which scores as many as it reads. Each of
            them has at least `window - stride` tokens before it. By default half the window; with the whole window no
            token is read twice, and the first ones of a window have hardly any context.
        batch_size: Windows at a time; a document that fits into one is one window.
        progress: Whether to show a progress bar, on standard error.

    Yields:
        The scores of each document, as soon as it is done: long ones come first.

    Raises:
        ValueError: If a document is no Unicode text, or window and stride do not fit each other or the model.
    """
    window = default_window(model) if window is None else window
    stride = max(window // 2, 1) if stride is None else stride
    if window < 1:
        raise ValueError(f"`window` is {window}: it must be at least 1.")
    if not 1 <= stride <= window:
        raise ValueError(f"`stride` is {stride}: it must be 1 to `window`, {window}, or tokens would be left out.")
    segmenter = None if rule is None else SentenceSegmenter(rule)
    rows = _read(documents, tokenizer)
    windows = [Window(i, *place) for i, row in rows.items() for place in windows_of(row.num_scored, window, stride)]
    _check_positions(model, rows, windows)
    # Long ones first: what does not fit into memory fails at once. Those of a document stay together.
    windows.sort(key=lambda window: window.begin - window.end)
    begun: dict[int, _Document] = {}
    with evaluation_mode(model):
        for batch in in_batches(windows, batch_size, "Scoring", progress):
            for index in {window.document for window in batch} - begun.keys():
                begun[index] = _Document(rows.pop(index), segmenter)
            _score(batch, begun, model, tokenizer, segmenter)
            for index in sorted({window.document for window in batch}):
                if not begun[index].unscored:
                    yield begun.pop(index).scores(index)


def default_window(*models: PreTrainedModel) -> int:
    """The most tokens that each of these models reads at once, whatever they are.

    An SLLM's backbone has one position for the start and one for each sentence, of which any token may be one. So an
    SLLM reads one token less than its backbone for sure, and many more in most texts.
    """
    return min(_positions(model) - (model.config.model_type == "sllm") for model in models)


def windows_of(tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Where a model reads so many tokens after a start token: begin, end and tokens scored, see `Window`.

    These are the windows of lm-evaluation-harness (`lm_eval.utils.get_rolling_token_windows`) with
    `max_seq_len=window` and `context_len=window - stride + 1`.
    """
    end = min(window, tokens)
    yield 0, end, end
    while end < tokens:
        scored = min(stride, tokens - end)
        end += scored
        yield end - window, end, scored


class _Row(NamedTuple):
    """`(1 + N,)` token ids of a document, the start token first, and the bytes of its `N` others."""

    token_ids: torch.Tensor
    token_bytes: torch.Tensor | None
    bytes: int

    @property
    def num_scored(self) -> int:
        return len(self.token_ids) - 1


class _Document:
    """A document that is being scored."""

    def __init__(self, row: _Row, segmenter: SentenceSegmenter | None):
        self.row = row
        self.unscored = row.num_scored
        self.nats = torch.empty(row.num_scored, dtype=torch.float64)
        self.sentences: dict[str, torch.Tensor] = {}
        self.open_length = torch.zeros(row.num_scored, dtype=torch.long)
        if segmenter is not None:
            token_ids = row.token_ids[None]
            layout = segmenter.layout(token_ids, torch.ones_like(token_ids, dtype=torch.bool))
            # The start token counts, as it does for an SLLM: it is part of the first sentence, unless it closes one.
            self.open_length = layout.token_offset[1:]
            self.sentences = {
                "close_probability": torch.empty_like(self.nats),
                "closes": layout.token_closes[1:],
                "forced": self.open_length + 1 >= segmenter.config.max_sentence_length,
                "sentence": layout.token_sentence[1:] - layout.token_sentence[1],
            }

    def scores(self, index: int) -> DocumentScores:
        row = self.row
        return DocumentScores(index, row.bytes, row.token_ids[1:], self.nats, row.token_bytes, **self.sentences)


def _read(documents: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> dict[int, _Row]:
    """The documents' tokens, by the documents' numbers."""
    rows = {}
    unknown = 0
    for index, document in enumerate(documents):
        text = document["text"]
        try:
            num_bytes = len(text.encode())
        except UnicodeEncodeError as error:
            raise ValueError(
                f"document {index} has a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}: "
                "that is no character, and has no bytes in UTF-8. Replace it, or leave the document out."
            ) from error
        token_bytes = None
        if tokenizer.is_fast:
            ids, bytes_before_end = ids_and_bytes([text], tokenizer)
            token_ids, token_bytes = torch.from_numpy(ids), torch.from_numpy(bytes_before_end).diff()
        else:
            token_ids = torch.tensor(document_ids([text], tokenizer)[0])
        if tokenizer.unk_token_id is not None:
            unknown += int((token_ids == tokenizer.unk_token_id).sum())
        rows[index] = _Row(token_ids, token_bytes, num_bytes)
    if unknown:
        logger.warning(f"{unknown} tokens are unknown to the tokenizer: what they stand for is not scored.")
    return rows


@torch.no_grad()
def _score(
    windows: Sequence[Window],
    documents: Mapping[int, _Document],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    segmenter: SentenceSegmenter | None,
) -> None:
    """Scores what is new in some windows, and notes it with their documents."""
    read, targets, open_lengths = [], [], []
    for index, begin, end, scored in windows:
        document = documents[index]
        read.append(document.row.token_ids[begin:end])
        targets.append(document.row.token_ids[end - scored + 1 : end + 1])
        open_lengths.append(document.open_length[end - scored : end])
    input_ids, mask = padded(read, tokenizer, model.device)
    with torch.autocast(model.device.type, enabled=False):
        logits = model(input_ids, attention_mask=mask, use_cache=False).logits

    # Where in the flattened logits the scored tokens are predicted.
    places = torch.cat(
        [row * logits.shape[1] + torch.arange(w.end - w.begin)[-w.scored :] for row, w in enumerate(windows)]
    )
    nats, close_probability = _nats(
        logits.flatten(0, 1),
        places.to(logits.device),
        torch.cat(targets).to(logits.device),
        torch.cat(open_lengths).to(logits.device),
        segmenter,
    )
    sizes = [window.scored for window in windows]
    parts = zip(windows, nats.split(sizes), close_probability.split(sizes), strict=True)
    for (index, _, end, scored), new_nats, new_probability in parts:
        document = documents[index]
        document.nats[end - scored : end] = new_nats
        if segmenter is not None:
            document.sentences["close_probability"][end - scored : end] = new_probability
        document.unscored -= scored


def _nats(
    logits: torch.Tensor,
    places: torch.Tensor,
    targets: torch.Tensor,
    open_length: torch.Tensor,
    segmenter: SentenceSegmenter | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats of the `(T,)` targets that logits `(positions, vocab)` predict at the `(T,)` places, and the probability
    that sentences of so many tokens are closed there; both `(T,)` on the CPU."""
    nats, close_probability = torch.zeros(2, len(targets), device=logits.device)
    vocab_size = logits.shape[1]
    if segmenter is not None:
        closing = segmenter.closing_strength(torch.arange(vocab_size, device=logits.device)).nonzero().squeeze(1)
    for part in torch.arange(len(targets), device=logits.device).split(max(PROBABILITIES_AT_ONCE // vocab_size, 1)):
        log_probabilities = logits[places[part]].float().log_softmax(-1)
        nats[part] = -log_probabilities.gather(1, targets[part, None]).squeeze(1)
        if segmenter is not None:
            would_close = segmenter.closes(closing[None], open_length[part, None])  # (part, closing)
            probability = (log_probabilities[:, closing].exp() * would_close).sum(1).clamp(max=1.0)
            forced = open_length[part] + 1 >= segmenter.config.max_sentence_length
            close_probability[part] = probability.masked_fill(forced, 1.0)
    return nats.cpu(), close_probability.cpu()


def _positions(model: PreTrainedModel) -> int:
    """Positions of a model; of an SLLM's backbone, and of its decoder if that reads on from sentence to sentence."""
    config: Any = model.config
    parts = [config.get_text_config(decoder=True)]
    if config.model_type == "sllm" and config.decoder_context_length:
        parts.append(config.sentence_decoder_config)
    return min(getattr(part, "max_position_embeddings", None) or DEFAULT_WINDOW for part in parts)


def _check_positions(model: PreTrainedModel, rows: Mapping[int, _Row], windows: Sequence[Window]) -> None:
    """Refuses windows with more positions than the model has."""
    longest = max((window.end - window.begin for window in windows), default=0)
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is None or longest <= default_window(model):
        return
    unit = "tokens"
    if model.config.model_type == "sllm":
        # Its backbone has one position for each sentence that is closed, and one for the start.
        segmenter = SentenceSegmenter(model.config)
        unit, longest = "sentences", 0
        for index, begin, end, _ in windows:
            token_ids = rows[index].token_ids[None, begin:end]
            layout = segmenter.layout(token_ids, torch.ones_like(token_ids, dtype=torch.bool))
            longest = max(longest, int(layout.sentence_closed.sum()) + 1)
    if longest > limit:
        raise ValueError(
            f"a window has {longest} {unit}, and the model reads at most {limit} (`max_position_embeddings`): lower "
            "`window`."
        )


__all__ = ["DocumentScores", "default_window", "score_documents"]
