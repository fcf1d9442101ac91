"""One thread that owns a model, and writes the texts of all requests in one batch.

Rows join where a sentence ends and leave when they end: between the sentences, rows that are done are taken out of the
batch, those that wait are read and put in, and the backbone takes in the sentences that the others have closed. So a
request waits for one sentence at most, and the texts that are written meanwhile go on as if they were alone.
"""

import atexit
import copy
import math
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    MaxLengthCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.utils import logging

from hf_sllm.modeling import SllmCache, SllmForCausalLM
from hf_sllm.modeling.generation_sllm import sample_latents_by

from .cache_rows import drop_holes, join, new_cache

logger = logging.get_logger(__name__)


class TokenScore(NamedTuple):
    """How likely the model found a token, and its likeliest ones."""

    logprob: float
    likeliest: dict[int, float]


@dataclass
class Row:
    """A text that is to be written.

    Attributes:
        ids: Of the prompt, the start token included.
        generation_config: How it is written.
        tokenizer: For stop strings.
        seed: Of its sampling; by default one is drawn.
        top_logprobs: Keep the log-probability of each token, and of so many likeliest ones; `None` for no scores.
        on_sentence: Called with the ids of each sentence as soon as it is written.
        future: Its result is the list of ids written. Cancelled, the row leaves the batch at the next token.
        scores: Of each token written, if they are kept.
    """

    ids: list[int]
    generation_config: GenerationConfig
    tokenizer: Any = None
    seed: int | None = None
    top_logprobs: int | None = None
    on_sentence: Callable[[list[int]], object] | None = None
    future: "Future[list[int]]" = field(default_factory=Future)
    scores: list[TokenScore] = field(default_factory=list)

    def __post_init__(self):
        self.ids = list(self.ids)  # it grows, and the caller's does not
        self.prompt_length = len(self.ids)
        self.streamed = len(self.ids)
        self.waits = False  # has closed its sentence, and the token that does is not yet fed
        self.ended = False
        self.seed = secrets.randbits(31) if self.seed is None else self.seed
        self.generator: torch.Generator | None = None  # of what is sampled
        # What `generate` makes of the config: see `take_prepared`.
        self.processors: Any = ()
        self.end_ids: set[int] = set()
        self.max_length = math.inf
        self.criteria: list[Any] = []

    @property
    def left(self) -> bool:
        """Whether nobody asks for it any more."""
        return self.future.cancelled()


class Scheduler:
    """Writes rows, and runs what else is to be done with the model, in a thread of its own.

    Args:
        model: The model.
        max_rows: Of the batch; the others wait for a place.
    """

    def __init__(self, model: SllmForCausalLM, max_rows: int = 32):
        self.model = model
        self.max_rows = max_rows
        self.most_rows = 0  # that were ever in the batch
        self._asked: SimpleQueue[Row | tuple[Callable[[], Any], Future] | None] = SimpleQueue()
        self._closed = threading.Event()
        self._waiting: list[Row] = []
        self._rows: list[Row] = []
        self._cache: SllmCache | None = None
        self._logits: torch.Tensor | None = None  # (rows, vocab) of each row's next token
        self._thread = threading.Thread(target=self._run, daemon=True, name="hf-sllm-scheduler")
        self._thread.start()
        atexit.register(self.close)  # a thread that is in the middle of torch when Python ends takes all down

    def submit(self, row: Row) -> "Future[list[int]]":
        """Asks for a text."""
        self._asked.put(row)
        return row.future

    def call(self, function: Callable[[], Any]) -> Future:
        """Asks that a function be called between two sentences, while nothing else uses the model."""
        future: Future = Future()
        self._asked.put((function, future))
        return future

    def close(self) -> None:
        """Ends the thread at the next token; what is asked for then is not answered."""
        self._closed.set()
        self._asked.put(None)
        self._thread.join(10)
        atexit.unregister(self.close)

    def _run(self) -> None:
        with torch.inference_mode():
            while not self._closed.is_set():
                self._take_asked()
                try:
                    self._exchange_rows()
                    while not self._closed.is_set() and any(not (row.waits or row.ended) for row in self._rows):
                        self._write_token()
                except Exception as error:  # of the model: it is told to those who wait for it, and the others go on
                    logger.exception("a batch could not be written")
                    for row in self._rows:
                        finish(row, error)
                    self._rows, self._cache, self._logits = [], None, None

    def _take_asked(self) -> None:
        """Takes in what was asked for; if there is nothing else to do, waits for it."""
        idle = not (self._rows or self._waiting)
        while True:
            try:
                asked = self._asked.get(block=idle)
            except Empty:
                return
            idle = False
            if isinstance(asked, Row):
                self._waiting.append(asked)
            elif asked is not None:
                run_into(*asked)

    def _exchange_rows(self) -> None:
        """Between sentences: rows leave, those that stay read the sentence they closed, and others join."""
        stay = [index for index, row in enumerate(self._rows) if not row.ended]
        parts: list[tuple[list[Row], SllmCache, torch.Tensor]] = []
        if stay and self._cache is not None:
            if len(stay) < len(self._rows):
                self._cache.batch_select_indices(torch.tensor(stay, device=self.model.device))
            drop_holes(self._cache)
            rows = [self._rows[index] for index in stay]
            parts.append((rows, self._cache, self._feed(rows, [True] * len(rows), closing=True)))
        self._waiting = [row for row in self._waiting if not row.left]
        places = self.max_rows - len(stay)
        parts += self._read(self._waiting[:places])
        del self._waiting[:places]
        self._rows = [row for rows, _, _ in parts for row in rows]
        self.most_rows = max(self.most_rows, len(self._rows))
        for row in self._rows:
            row.waits = False
        if parts:
            self._cache = join([cache for _, cache, _ in parts])
            self._logits = torch.cat([logits for _, _, logits in parts])
        else:
            self._cache = self._logits = None

    def _read(self, rows: list[Row]) -> list[tuple[list[Row], SllmCache, torch.Tensor]]:
        """Reads the prompts of rows, together if that can be done."""
        rows = [row for row in rows if self._prepare(row)]
        if not rows:
            return []
        try:
            return [(rows, *self._prefill(rows))]
        except Exception as error:  # one of them is too long, for instance: each by itself, so that others are read
            if len(rows) == 1:
                finish(rows[0], error)
                return []
            return [part for row in rows for part in self._read([row])]

    def _prepare(self, row: Row) -> bool:
        """Finds a row's processors and criteria as `generate` does; a request that cannot be is told so."""
        try:
            config, stops = copy.deepcopy(row.generation_config), StoppingCriteriaList()
            if config.stop_strings:  # for which `generate` hands no tokenizer on to a method of one's own
                stops.append(StopStringCriteria(row.tokenizer, config.stop_strings))
                config.stop_strings = None
            self.model.generate(
                torch.tensor([row.ids[: row.prompt_length]], device=self.model.device),
                generation_config=config,
                stopping_criteria=stops,
                custom_generate=lambda _, ids, **prepared: take_prepared(row, ids, **prepared),
            )
        except Exception as error:
            finish(row, error)
            return False
        return True

    def _prefill(self, rows: list[Row]) -> tuple[SllmCache, torch.Tensor]:
        """The cache after these prompts, and the logits `(rows, vocab)` of their next tokens."""
        longest, device = max(len(row.ids) for row in rows), self.model.device
        pad = self.model.config.pad_token_id or 0
        ids = torch.tensor([[pad] * (longest - len(row.ids)) + row.ids for row in rows], device=device)
        mask = torch.tensor([[0] * (longest - len(row.ids)) + [1] * len(row.ids) for row in rows], device=device)
        cache = new_cache(self.model.config)
        if self.model.config.samples_latents:
            seeds = [0 if row.generator is None else row.seed for row in rows]
            cache.latent_seeds = torch.tensor(seeds, device=device)
            sample_latents_by(rows[0].generation_config, cache, len(rows), device)
        output = self.model(ids, mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache, output.logits[:, -1].float()

    def _feed(self, rows: Sequence[Row], feeding: list[bool], closing: bool) -> torch.Tensor:
        last = torch.tensor([row.ids[-1] for row in rows], device=self.model.device)
        assert self._cache is not None
        return self.model._feed(last, feeding, closing, self._cache, None)[0].float()

    def _write_token(self) -> None:
        """A token more for each row that neither waits nor has ended, and the logits after it."""
        writing = [not (row.waits or row.ended) for row in self._rows]
        assert self._cache is not None and self._logits is not None
        best = self._logits.argmax(-1).tolist()
        for index, row in enumerate(self._rows):
            if not writing[index]:
                continue
            if row.left:
                row.ended = True
                continue
            logits = self._logits[index : index + 1]
            try:
                row.ids.append(choose_token(row, logits, best[index]))
                row.ended = has_ended(row)
            except Exception as error:  # of a processor or criterion of this row's own
                finish(row, error)
                row.ended = True
        last = torch.tensor([row.ids[-1] for row in self._rows], device=self.model.device)
        closes = self.model.model.segmenter.closes(last, self._cache.open_length).tolist()
        for index, row in enumerate(self._rows):
            if writing[index]:
                row.waits = closes[index] and not row.ended
                if row.waits or row.ended:
                    self._hand_on(row)
        feeding = [writes and not (row.waits or row.ended) for writes, row in zip(writing, self._rows, strict=True)]
        if any(feeding):
            logits = self._feed(self._rows, feeding, closing=False)
            chosen = torch.tensor(feeding, device=logits.device)[:, None]
            self._logits = torch.where(chosen, logits, self._logits)

    def _hand_on(self, row: Row) -> None:
        """Streams a sentence that is written, and gives back a text that is."""
        try:
            if row.on_sentence is not None and not row.left:
                row.on_sentence(row.ids[row.streamed :])
            row.streamed = len(row.ids)
        except Exception as error:  # whoever reads the stream has left
            finish(row, error)
            row.ended = True
        if row.ended:
            finish(row, row.ids[row.prompt_length :])


def take_prepared(
    row: Row,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    **rest: Any,
) -> torch.Tensor:
    """Keeps what `generate` found out about a row, split so that what nearly all rows have costs no call."""
    row.generation_config, row.processors = generation_config, logits_processor
    for criterion in stopping_criteria:
        if isinstance(criterion, MaxLengthCriteria):
            row.max_length = min(row.max_length, criterion.max_length)
        elif isinstance(criterion, EosTokenCriteria):
            row.end_ids |= set(criterion.eos_token_id.flatten().tolist())
        else:
            row.criteria.append(criterion)
    if generation_config.do_sample:
        row.generator = torch.Generator(device=input_ids.device)
        row.generator.manual_seed(row.seed)  # type: ignore[arg-type]
    return input_ids


def choose_token(row: Row, logits: torch.Tensor, best: int) -> int:
    """The next token of a row, from logits `(1, vocab)`, of which `best` is the likeliest token."""
    token = best
    if row.generator is not None or len(row.processors):
        scores = row.processors(torch.tensor([row.ids], device=logits.device), logits.clone())
        if row.generator is not None:
            token = int(torch.multinomial(scores.softmax(-1), 1, generator=row.generator))
        else:
            token = int(scores.argmax(-1))
    if row.top_logprobs is not None:
        logprobs = logits[0].log_softmax(-1)
        values, indices = logprobs.topk(row.top_logprobs)
        likeliest = dict(zip(indices.tolist(), values.tolist(), strict=True))
        row.scores.append(TokenScore(float(logprobs[token]), likeliest))
    return token


def has_ended(row: Row) -> bool:
    """Whether a row's newest token is its last."""
    if row.ids[-1] in row.end_ids or len(row.ids) >= row.max_length:
        return True
    if not row.criteria:
        return False
    ids = torch.tensor([row.ids])
    return any(bool(criterion(ids, None).any()) for criterion in row.criteria)


def finish(row: Row, result: list[int] | Exception) -> None:
    """Gives whoever waits for a row its text, or an error, unless that one has left."""
    with suppress(InvalidStateError):
        if isinstance(result, Exception):
            row.future.set_exception(result)
        else:
            row.future.set_result(result)


def run_into(function: Callable[[], Any], future: Future) -> None:
    """Calls a function and gives its result, or its error, to whoever waits for it."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)
