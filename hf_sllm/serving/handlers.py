"""What the server answers beside what transformers' own does: several prompts and choices, log-probabilities, and
embeddings.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import struct
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import BatchEncoding
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.utils import BaseHandler

from hf_sllm.corpus.latents import EmbedSettings, SentenceEmbedder

from .manager import Asked, BatchState
from .scheduler import Row

if TYPE_CHECKING:
    from fastapi import HTTPException
    from fastapi.responses import JSONResponse, StreamingResponse

# A log-probability that JSON can hold, for a token that cannot come.
LEAST_LOGPROB = -9999.0

# Choices of one request, so that no single client takes all places for long.
MOST_CHOICES = 128


class ManyChoices(BaseHandler):
    """A handler that writes several texts for a request, side by side, and says how likely their tokens were."""

    def _build_generation_config(self, body: dict, *args: Any, **kwargs: Any) -> Any:
        # The seed is each row's own: one of the whole process would be other requests' too.
        config: Any = super()._build_generation_config({**body, "seed": None}, *args, **kwargs)
        choices = 1 if body.get("n") is None else body["n"]
        if type(choices) is not int or not 1 <= choices <= MOST_CHOICES:
            raise refused(f"`n` is {choices!r}: it must be a whole number from 1 to {MOST_CHOICES}.")
        top_logprobs = self.top_logprobs(body)
        if top_logprobs is not None and body.get("stream"):
            raise refused("`logprobs` came with `stream`: ask for one of them.")
        config.asked = Asked(choices, body.get("seed"), top_logprobs)
        return config

    def top_logprobs(self, body: dict) -> int | None:
        """How many likeliest tokens a request wants to know of; `None` if it asks for no log-probabilities."""
        raise NotImplementedError

    def describe(self, row: Row, tokenizer: Any) -> dict[str, Any]:
        """The log-probabilities of a row as this endpoint gives them."""
        raise NotImplementedError

    def _streaming(  # type: ignore[no-untyped-def]
        self, request_id, model, processor, model_id, inputs, gen_config, gen_manager, *rest, **named
    ) -> StreamingResponse:
        from fastapi.responses import StreamingResponse

        found = [
            super(ManyChoices, self)._streaming(  # type: ignore[misc]
                request_id, model, processor, model_id, own, config, gen_manager, *rest, **named
            )
            for own, config in each_choice(inputs, gen_config)
        ]
        return found[0] if len(found) == 1 else StreamingResponse(merged(found), media_type="text/event-stream")

    async def _non_streaming(  # type: ignore[no-untyped-def]
        self, request_id, model, processor, model_id, inputs, gen_config, gen_manager, *rest, **named
    ) -> JSONResponse:
        asked = each_choice(inputs, gen_config)
        answering = super()._non_streaming  # type: ignore[misc]
        try:
            answers = await asyncio.gather(
                *(
                    answering(request_id, model, processor, model_id, own, config, gen_manager, *rest, **named)
                    for own, config in asked
                )
            )
        except ValueError as error:  # of what was asked for: a prompt that is too long, or an option that cannot be
            raise refused(str(error)) from error
        whole = json.loads(answers[0].body)
        whole["choices"], written, read = [], 0, 0
        for index, (answer, (_, config)) in enumerate(zip(answers, asked, strict=True)):
            part = json.loads(answer.body)
            choice = {**part["choices"][0], "index": index}
            if config.asked.top_logprobs is not None:
                choice["logprobs"] = self.describe(config.asked.row, getattr(processor, "tokenizer", processor))
            whole["choices"].append(choice)
            written += part["usage"]["completion_tokens"]
            read += part["usage"]["prompt_tokens"] * (index % gen_config.asked.choices == 0)
        counts = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        whole["usage"] = {**whole["usage"], **counts}
        return json_answer(whole)


class Completions(ManyChoices, CompletionHandler):
    """`/v1/completions`, also for lists of prompts, which are texts or token ids."""

    _unused_fields = CompletionHandler._unused_fields - {"n", "logprobs"}

    async def handle_request(self, body: dict, request_id: str) -> Any:
        self._validate_request(body)
        prompts = prompts_of(body.get("prompt", ""))
        model_id, model, processor = self._resolve_model(body)
        tokenizer = getattr(processor, "tokenizer", processor)
        config = self._build_generation_config(body, model.generation_config)
        inputs = [encoded(prompt, tokenizer).to(model.device) for prompt in prompts]
        manager = self.generation_state.get_manager(model_id)
        asked = (request_id, model, processor, model_id, inputs, config, manager, body.get("suffix"))
        return self._streaming(*asked) if body.get("stream") else await self._non_streaming(*asked)

    def top_logprobs(self, body: dict) -> int | None:
        return checked_count("logprobs", body.get("logprobs"), 5)

    def describe(self, row: Row, tokenizer: Any) -> dict[str, Any]:
        ids = row.ids[row.prompt_length :]
        texts = [tokenizer.decode(ids[:end], skip_special_tokens=True) for end in range(len(ids))]
        return {
            "tokens": [tokenizer.decode([token]) for token in ids],
            "token_logprobs": [finite(score.logprob) for score in row.scores],
            "top_logprobs": [
                {tokenizer.decode([token]): finite(value) for token, value in score.likeliest.items()}
                for score in row.scores
            ],
            "text_offset": list(map(len, texts)),
        }


class Chats(ManyChoices, ChatCompletionHandler):
    """`/v1/chat/completions`."""

    _unused_fields = ChatCompletionHandler._unused_fields - {"n", "logprobs", "top_logprobs"}

    def top_logprobs(self, body: dict) -> int | None:
        count = checked_count("top_logprobs", body.get("top_logprobs"), 20)
        if count is not None and not body.get("logprobs"):
            raise refused("`top_logprobs` needs `logprobs`: true.")
        return (count or 0) if body.get("logprobs") else None

    def describe(self, row: Row, tokenizer: Any) -> dict[str, Any]:
        def entry(token: int, logprob: float) -> dict[str, Any]:
            text = tokenizer.decode([token])
            return {"token": text, "logprob": finite(logprob), "bytes": list(text.encode())}

        return {
            "content": [
                {**entry(token, score.logprob), "top_logprobs": [entry(*other) for other in score.likeliest.items()]}
                for token, score in zip(row.ids[row.prompt_length :], row.scores, strict=True)
            ]
        }


class Embeddings(BaseHandler):
    """`/v1/embeddings`: for each text the mean of its sentences' latents."""

    generation_state: BatchState

    async def handle_request(self, body: dict) -> JSONResponse:
        """Answers a request."""
        prompts = prompts_of(body.get("input", ""))
        if body.get("encoding_format", "float") not in ("float", "base64"):
            raise refused(f"`encoding_format` is {body['encoding_format']!r}: it must be float or base64.")
        if body.get("dimensions") is not None:
            raise refused("`dimensions` is not supported: a latent has the size it was trained with. Leave it out.")
        model_id, model, processor = self._resolve_model(body)
        scheduler = self.generation_state.manager.of_model(model)
        if scheduler is None:
            raise refused(f"{model_id} is no SLLM: it has no latents of sentences.")
        tokenizer: Any = getattr(processor, "tokenizer", processor)
        texts = [prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in prompts]
        rows: dict[str, list] = {"id": list(map(str, range(len(texts)))), "text": texts}
        embedder = SentenceEmbedder(model, tokenizer, EmbedSettings("float32"))
        found = await asyncio.wrap_future(scheduler.call(lambda: embedder(rows)))
        data = []
        for index, (latents, error) in enumerate(zip(found["latents"], found["error"], strict=True)):
            if error is not None:
                raise refused(f"`input` {index}: {error}")
            data.append({"object": "embedding", "index": index, "embedding": np.mean(latents, 0).tolist()})
        if body.get("encoding_format") == "base64":
            for item in data:
                vector = item["embedding"]
                item["embedding"] = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        count = sum(map(len, tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]))
        usage = {"prompt_tokens": count, "total_tokens": count}
        return json_answer({"object": "list", "data": data, "model": model_id, "usage": usage})


def json_answer(content: dict[str, Any]) -> JSONResponse:
    """The answer to a request."""
    from fastapi.responses import JSONResponse

    return JSONResponse(content)


def refused(message: str) -> HTTPException:
    """The answer to a request that cannot be."""
    from fastapi import HTTPException

    return HTTPException(status_code=400, detail=message)


def checked_count(name: str, value: Any, most: int) -> int | None:
    """A number of tokens, if one is given."""
    if value is None or value is False:
        return None
    if type(value) is not int or not 0 <= value <= most:
        raise refused(f"`{name}` is {value!r}: it must be a whole number from 0 to {most}.")
    return value


def prompts_of(given: Any) -> list[str | list[int]]:
    """The prompts of a request: a text, a list of texts, token ids, or a list of these."""
    is_ids = isinstance(given, list) and bool(given) and all(type(item) is int for item in given)
    prompts = [given] if isinstance(given, str) or is_ids else given
    good = isinstance(prompts, list) and bool(prompts)
    for prompt in prompts if good else []:
        good = good and (
            isinstance(prompt, str) or (isinstance(prompt, list) and all(type(item) is int for item in prompt))
        )
    if not good:
        raise refused(f"`prompt` or `input` is {given!r}: it must be a text, a list of texts, or token ids.")
    return prompts


def encoded(prompt: str | list[int], tokenizer: Any) -> BatchEncoding:
    """The inputs `(1, length)` of a prompt."""
    if isinstance(prompt, str):
        return tokenizer(prompt, return_tensors="pt")
    beyond = [token for token in prompt if not 0 <= token < len(tokenizer)]
    if beyond:
        raise refused(f"`prompt` has the token id {beyond[0]}: they go from 0 to {len(tokenizer) - 1}.")
    ids = torch.tensor([prompt], dtype=torch.long)
    return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def each_choice(inputs: Any, config: Any) -> list[tuple[Any, Any]]:
    """The inputs and the generation config of each text that is to be written; seeds count up."""
    prompts = inputs if isinstance(inputs, list) else [inputs]
    found = []
    for prompt in prompts:
        for number in range(config.asked.choices):
            own, asked = copy.copy(config), copy.copy(config.asked)
            asked.seed = None if asked.seed is None else asked.seed + number
            own.asked = asked
            found.append((prompt, own))
    return found


async def merged(streams: list[StreamingResponse]) -> AsyncIterator[str]:
    """The events of several streams as they come, each with the index of its choice."""
    events: asyncio.Queue[str | None] = asyncio.Queue()

    async def read(index: int, stream: StreamingResponse) -> None:
        try:
            async for lines in stream.body_iterator:
                for line in filter(None, str(lines).split("\n\n")):
                    event = json.loads(line.removeprefix("data: "))
                    for choice in event.get("choices", []):
                        choice["index"] = index
                    await events.put(f"data: {json.dumps(event)}\n\n")
        finally:
            events.put_nowait(None)

    readers = [asyncio.ensure_future(read(index, stream)) for index, stream in enumerate(streams)]
    try:
        left = len(readers)
        while left:
            event = await events.get()
            if event is None:
                left -= 1
            else:
                yield event
    finally:
        for reader in readers:
            reader.cancel()


def finite(logprob: float) -> float:
    """A number that JSON has."""
    return max(logprob, LEAST_LOGPROB)
