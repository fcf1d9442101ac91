"""Two writers that work on one request side by side: one sentence by sentence, one token by token."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from hf_sllm.benchmark.memory import bytes_held
from hf_sllm.data import sentence_rule, start_token_id
from hf_sllm.evaluation import default_window
from hf_sllm.modeling import SentenceSegmenter

# Tokens at a time of the writer that goes token by token: about a sentence, so that what a call of `generate` costs
# beside the model's own work weighs on both writers alike.
TOKENS_AT_A_TIME = 8

# Beyond the prompt; a request ends at some time whatever the model does.
MAX_NEW_TOKENS = 400


@dataclass(frozen=True)
class Settings:
    """How to write.

    Attributes:
        temperature: 0 takes the likeliest token each time.
        top_p: Sample from the likeliest so much, above 0 and up to 1.
        max_sentences: Write at most so many, the one that the prompt leaves open included.
        seed: Of this request's sampling alone.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    max_sentences: int = 8
    seed: int = 1


def race(writers: list["Writer"]) -> Iterator["Writer"]:
    """Lets the writer whose own clock is behind do its next step, until all are done; yields it after each.

    Whoever stops listening stops the work.
    """
    while unfinished := [writer for writer in writers if not writer.done]:
        writer = min(unfinished, key=lambda writer: writer.seconds)
        writer.step()
        yield writer


class Writer:
    """A text that a model goes on with, step by step.

    Args:
        model: Any causal language model.
        tokenizer: The model's own.
        prompt: What the text begins with.
        settings: How to write.
        by_sentence: Whether a step is a sentence, which needs an SLLM, or a few tokens.

    Raises:
        ValueError: If the prompt is longer than the model reads.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: str,
        settings: Settings,
        by_sentence: bool,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.by_sentence = by_sentence
        self.ids = torch.tensor([prompt_ids(model, tokenizer, prompt)])
        self.cache = None
        self.tokens = self.sentences = 0
        self.seconds = 0.0  # of this writer's own steps
        self.done = False
        is_sllm = model.config.model_type == "sllm"
        self._segmenter = SentenceSegmenter(model.config if is_sllm else sentence_rule(tokenizer))
        layout = self._segmenter.layout(self.ids, torch.ones_like(self.ids, dtype=torch.bool))
        self._open_length = 0 if layout.token_closes[-1] else int(layout.token_offset[-1]) + 1
        self._room = min(MAX_NEW_TOKENS, default_window(model) - self.ids.shape[1])
        self._processors = LogitsProcessorList()
        if settings.temperature > 0:
            self._processors += [TemperatureLogitsWarper(settings.temperature), TopPLogitsWarper(settings.top_p)]
            self._processors.append(Draw(settings.seed))

    @property
    def text(self) -> str:
        """The prompt and what is written; a character whose bytes are not all there is left out."""
        text = str(self.tokenizer.decode(self.ids[0], skip_special_tokens=True))
        return text if self.done else text.rstrip("\ufffd")

    @property
    def cache_bytes(self) -> int:
        """What is kept of the text in order to go on with it."""
        return bytes_held(self.cache)

    def step(self) -> None:
        """Writes a sentence, or a few tokens."""
        begun = time.perf_counter()
        unit: dict[str, int] = {"max_new_tokens": min(TOKENS_AT_A_TIME, self._room - self.tokens)}
        if self.by_sentence:
            longest = self.model.config.max_sentence_length
            unit = {"max_sentences": 1, "max_new_tokens": min(longest, self._room - self.tokens)}
        ids = self.ids.to(self.model.device)
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=self.cache,
            use_cache=True,
            # `Draw` samples: transformers would from one generator for all requests.
            do_sample=False,
            logits_processor=self._processors,
            return_dict_in_generate=True,
            **unit,
        )
        self.cache = output.past_key_values
        self._take(output.sequences.cpu())
        self.seconds += time.perf_counter() - begun

    def _take(self, ids: torch.Tensor) -> None:
        """Takes the ids up to the end of the last sentence asked for, or of the text."""
        length = self.ids.shape[1]
        for token in ids[0, length:]:
            length += 1
            self.tokens += 1
            closes = bool(self._segmenter.closes(token[None], torch.tensor([self._open_length])))
            self._open_length = 0 if closes else self._open_length + 1
            self.sentences += closes
            ended = int(token) == self.tokenizer.eos_token_id
            if ended or self.sentences >= self.settings.max_sentences or self.tokens >= self._room:
                self.done = True
                break
        self.ids = ids[:, :length]


class Draw(LogitsProcessor):
    """Has greedy search sample with random numbers of its own: the largest logit plus Gumbel noise is a sample."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores `(batch, vocab)` with noise."""
        uniform = torch.rand(scores.shape, generator=self.generator).to(scores.device)
        return scores - torch.log(-torch.log(uniform))


def prompt_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The start token and the text's.

    Raises:
        ValueError: If they are more than the model reads.
    """
    ids = [start_token_id(tokenizer), *tokenizer(text, add_special_tokens=False)["input_ids"]]
    most = default_window(model) - 1
    if len(ids) > most:
        raise ValueError(f"The text has {len(ids) - 1:,} tokens, the model reads at most {most - 1:,}: shorten it.")
    return ids
