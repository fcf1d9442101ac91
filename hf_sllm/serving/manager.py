"""Between the server of transformers and the scheduler: requests become rows of the running batch.

What the batch does not write (beam search, no cache, lists of tokens, ...) is written alone, between its sentences.
"""

import asyncio
import copy
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.cli.serving.utils import DirectStreamer, GenerateManager, GenerationState, _StreamError

from hf_sllm.data import start_token_id
from hf_sllm.modeling import SllmForCausalLM

from .scheduler import Row, Scheduler

# The decoding methods that the sentence loop serves; others go token by token.
SENTENCE_MODES = ("greedy_search", "sample")

# Options of `generate` with which a text is written alone, and those that have to be the model's own.
ALONE = ("shortlist_size", "sentences_at_once", "cache_implementation", "prefill_chunk_size", "guidance_scale")
OF_LATENTS = ("latent_steps", "latent_guidance_scale", "latent_noise_scale", "latent_seed")


@dataclass
class Asked:
    """What a request asks for that no generation config has.

    Attributes:
        choices: Texts for each prompt.
        seed: Of the first of them; the others have the next ones.
        top_logprobs: See `Row`.
        row: The row that was made of it.
    """

    choices: int = 1
    seed: int | None = None
    top_logprobs: int | None = None
    row: Row | None = None


class BatchState(GenerationState):
    """Gives out the one manager of a server."""

    def __init__(self, max_rows: int):
        super().__init__()
        self.manager = BatchManager(max_rows)

    def get_manager(self, model_id: str, use_cb: bool = False) -> "BatchManager":
        return self.manager


class BatchManager(GenerateManager):
    """Writes the texts of all requests in one batch, see `Scheduler`; those of a model that is no SLLM one by one.

    Args:
        max_rows: Of the batch.
    """

    def __init__(self, max_rows: int):
        super().__init__()
        self.max_rows = max_rows
        self.scheduler: Scheduler | None = None

    def of_model(self, model: Any) -> Scheduler | None:
        """What writes with a model; `None` if it is no SLLM."""
        if self.scheduler is None and isinstance(model, SllmForCausalLM):
            self.scheduler = Scheduler(model, self.max_rows)
        return self.scheduler

    def generate_streaming(
        self,
        model: Any,
        processor: Any,
        inputs: dict,
        gen_config: GenerationConfig,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple[asyncio.Queue, DirectStreamer]:
        scheduler, row = self._row_of(model, processor, inputs, gen_config)
        if scheduler is None or row is None:
            config = without_asked(gen_config)
            return super().generate_streaming(model, processor, inputs, config, request_id, response_parser)
        queue: asyncio.Queue = asyncio.Queue()
        tokenizer = getattr(processor, "tokenizer", processor)
        loop = asyncio.get_running_loop()
        streamer = RowStreamer(row, tokenizer._tokenizer, loop, queue, response_parser=response_parser)
        scheduler.submit(row)
        return queue, streamer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: dict, gen_config: GenerationConfig, request_id: str
    ) -> tuple[str, int, Any]:
        scheduler, row = self._row_of(model, processor, inputs, gen_config)
        if scheduler is None or row is None:
            config = without_asked(gen_config)
            return await super().generate_non_streaming(model, processor, inputs, config, request_id)
        ids = await asyncio.wrap_future(scheduler.submit(row))  # if the client leaves, the row is cancelled
        return processor.decode(ids, skip_special_tokens=True), inputs["input_ids"].shape[-1], ids

    def submit(self, fn: Callable, *args: Any, **kwargs: Any) -> Future:
        if self.scheduler is None:
            return super().submit(fn, *args, **kwargs)
        return self.scheduler.call(partial(fn, *args, **kwargs))

    def async_submit(self, fn: Callable, *args: Any, **kwargs: Any) -> asyncio.Future:
        return asyncio.wrap_future(self.submit(fn, *args, **kwargs))

    def _row_of(
        self, model: Any, processor: Any, inputs: dict, gen_config: GenerationConfig
    ) -> tuple[Scheduler | None, Row | None]:
        """The row of a request, if the batch can write it."""
        scheduler, asked = self.of_model(model), getattr(gen_config, "asked", Asked())
        config = without_asked(gen_config)
        if scheduler is None or not fits_batch(config, model.generation_config):
            if asked.top_logprobs is not None:
                raise ValueError(
                    "`logprobs` are of SLLMs, and of what the batch writes: greedy search or sampling, without an "
                    "option that is written alone. Leave them out."
                )
            if asked.seed is not None:
                self.submit(torch.manual_seed, asked.seed)
            return scheduler, None
        asked.row = Row(
            with_start(inputs["input_ids"][0].tolist(), processor),
            as_asked(config, model.generation_config),
            processor,
            seed=asked.seed,
            top_logprobs=asked.top_logprobs,
        )
        return scheduler, asked.row


class RowStreamer(DirectStreamer):
    """Hands on the sentences of a row as the server's streams want them."""

    def __init__(self, row: Row, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._first = False  # of the prompt nothing is handed on
        self._row = row
        row.on_sentence = lambda ids: self.put(torch.tensor(ids))
        row.future.add_done_callback(self._finish)

    def cancel(self) -> None:
        super().cancel()
        self._row.future.cancel()

    def _finish(self, future: "Future[list[int]]") -> None:
        try:
            future.result()
            self.end()
        except CancelledError:
            pass
        except Exception as error:
            self._enqueue(_StreamError(str(error)))


class ServedSllm(SllmForCausalLM):
    """An SLLM as the server calls it for what the batch does not write: it goes on with a text that begins as in
    training, sentence by sentence where that is possible."""

    def generate(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As `SllmForCausalLM.generate` for one row. A text that begins with no special token gets the start token.

        Returns:
            The ids given and written `(1, length)`, without a start token that was not given.
        """
        if "custom_generate" in kwargs:  # the scheduler's own call, which has the start token
            return super().generate(input_ids, generation_config, **kwargs)
        assert generation_config is not None and tokenizer is not None
        given = input_ids[0].tolist()
        whole = with_start(given, tokenizer)
        input_ids = input_ids.new_tensor([whole])
        generation_config = as_asked(generation_config, self.generation_config)
        if goes_by_sentences(generation_config):
            kwargs["max_sentences"] = float("inf")
        written = super().generate(
            input_ids,
            generation_config,
            attention_mask=torch.ones_like(input_ids),
            tokenizer=tokenizer,
            **kwargs,
        )
        return written[:, len(whole) - len(given) :]


def with_start(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids after the start token, unless they begin with a special one."""
    return ids if ids and ids[0] in tokenizer.all_special_ids else [start_token_id(tokenizer), *ids]


def as_asked(config: GenerationConfig, own: GenerationConfig) -> GenerationConfig:
    """A request that names a temperature asks for it, of a model whose default is greedy too."""
    if config.temperature not in (None, 0, own.temperature):
        config.do_sample = True
    return config


def goes_by_sentences(config: GenerationConfig) -> bool:
    """Whether the sentence loop serves it."""
    return config.use_cache is not False and config.get_generation_mode().value in SENTENCE_MODES


def fits_batch(config: GenerationConfig, own: GenerationConfig) -> bool:
    """Whether a text may be written among others."""
    if not goes_by_sentences(config) or (config.num_return_sequences or 1) > 1:
        return False
    apart = any(getattr(config, name, None) is not None for name in ALONE)
    return not apart and all(getattr(config, name, None) == getattr(own, name, None) for name in OF_LATENTS)


def without_asked(config: GenerationConfig) -> GenerationConfig:
    """The generation config alone."""
    config = copy.copy(config)
    vars(config).pop("asked", None)
    return config
