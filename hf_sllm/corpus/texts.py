"""From a batch of rows to a batch of texts: each row is a prompt, which the model continues."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from hf_sllm.data import start_token_id
from hf_sllm.evaluation.loop import evaluation_mode
from hf_sllm.modeling import SentenceSegmenter

from .buckets import in_buckets
from .sampling import RowSampling, row_seed

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class WriteSettings:
    """How texts are written.

    Attributes:
        max_sentences: Write at most so many sentences; one that the prompt leaves open is the first.
        max_new_tokens: Write at most so many tokens.
        greedy: Take the likeliest token each time, instead of sampling.
        temperature, top_k, top_p: Of the sampling; `None` is what the model's `generation_config` has, and all tokens
            as the model says where it has nothing.
        seed: Of the sampling, beside the id of each row.
    """

    max_sentences: int = 20
    max_new_tokens: int = 400
    greedy: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self):
        for name in ("max_sentences", "max_new_tokens", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}: it must be at least 1.")
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(
                f"`temperature` is {self.temperature}: it must be above 0; for the likeliest text set `greedy`."
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` is {self.top_p}: it must be above 0, and at most 1.")
        if self.greedy and (self.temperature, self.top_k, self.top_p) != (None, None, None):
            raise ValueError("`greedy` takes no `temperature`, `top_k` or `top_p`: leave them out.")

    def for_model(self, model: Any) -> "WriteSettings":
        """The same with what the model itself says about sampling."""
        if self.greedy:
            return self
        names = ("temperature", "top_k", "top_p")
        own: dict[str, Any] = {
            name: getattr(model.generation_config, name, None) for name in names if getattr(self, name) is None
        }
        return dataclasses.replace(self, **own)


@dataclass(frozen=True)
class Prompt:
    """A row to continue: its seed, and its token ids with the start token."""

    seed: int
    ids: list[int]


@dataclass(frozen=True)
class Written:
    """What follows a prompt: the text, its tokens and closed sentences, and whether it came to its end."""

    text: str
    tokens: int
    sentences: int
    ended: bool


class TextWriter:
    """Maps a batch of rows to a batch of texts. It knows nothing of files.

    Args:
        model: An SLLM.
        tokenizer: Its own.
        settings: How it writes.
        batch_size: Rows at a time.

    Raises:
        ValueError: If the model is of another kind, or the tokenizer has no end of text.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: WriteSettings,
        batch_size: int = 32,
    ):
        if model.config.model_type != "sllm":
            raise ValueError(f"this is a {model.config.model_type!r} model, and texts are written with an SLLM.")
        self.model: Any = model
        self.tokenizer = tokenizer
        self.settings = settings.for_model(model)
        self.batch_size = batch_size
        self.segmenter = SentenceSegmenter(model.config)
        self.start = start_token_id(tokenizer)
        ends = model.generation_config.eos_token_id
        ends = tokenizer.eos_token_id if ends is None else ends
        self.ends: list[int] = list(ends) if isinstance(ends, list | tuple) else [ends]

    @property
    def schema(self) -> "pyarrow.Schema":
        """The columns of the result; those of a row that failed are null, but for its id, its prompt and its error."""
        import pyarrow as pa

        return pa.schema(
            {
                "id": pa.string(),
                "prompt": pa.string(),
                "written": pa.string(),
                "tokens": pa.int32(),
                "sentences": pa.int32(),
                "ended": pa.bool_(),
                "error": pa.string(),
            }
        )

    def __call__(self, rows: dict[str, list], advance: Callable[[int], object] = lambda rows: None) -> dict[str, list]:
        """Continues prompts.

        Args:
            rows: The columns `id`, strings, and `text`, strings or `None`.
            advance: Called with the number of rows of each batch that is done.
        """
        prompts = self._prompts(rows["id"], rows["text"])
        fit = [prompt for prompt in prompts if isinstance(prompt, Prompt)]
        advance(len(prompts) - len(fit))
        with evaluation_mode(self.model):
            found = in_buckets(self._write, fit, lambda prompt: len(prompt.ids), self.batch_size, advance)
        left = iter(found)
        results = [next(left) if isinstance(prompt, Prompt) else prompt for prompt in prompts]
        texts = [result if isinstance(result, Written) else None for result in results]
        return {
            "id": rows["id"],
            "prompt": rows["text"],
            "written": [text and text.text for text in texts],
            "tokens": [text and text.tokens for text in texts],
            "sentences": [text and text.sentences for text in texts],
            "ended": [text and text.ended for text in texts],
            "error": [None if isinstance(result, Written) else str(result) for result in results],
        }

    def _prompts(self, row_ids: list[str], texts: list[str | None]) -> list[Prompt | ValueError]:
        """What each row begins with, or why it cannot be continued."""
        given = [text for text in texts if text is not None and text.strip()]
        encoded = self.tokenizer(given, add_special_tokens=False, verbose=False)["input_ids"] if given else []
        left = iter(encoded)
        found: list[Prompt | ValueError] = []
        for row_id, text in zip(row_ids, texts, strict=True):
            if text is None or not text.strip():
                found.append(ValueError("the prompt is empty."))
                continue
            ids = [self.start, *next(left)]
            found.append(self._too_long(ids) or Prompt(row_seed(row_id, self.settings.seed), ids))
        return found

    def _too_long(self, ids: list[int]) -> ValueError | None:
        """Says so where a prompt and what is to be written after it are more than the model reads."""
        config, settings = self.model.config, self.settings
        limit = getattr(config.text_config, "max_position_embeddings", None)
        new = min(settings.max_sentences, settings.max_new_tokens) + 1  # one position is the start
        sentences = len(ids) + new  # there cannot be more
        if limit is not None and sentences > limit:
            token_ids = torch.tensor([ids])
            layout = self.segmenter.layout(token_ids, torch.ones_like(token_ids, dtype=torch.bool))
            sentences = int(layout.sentence_closed.sum()) + new
        if limit is not None and sentences > limit:
            return ValueError(
                f"the prompt is too long: with what is to be written it has {sentences} sentences, and the backbone "
                f"reads {limit} (`max_position_embeddings`). Cut it, or lower `max_sentences`."
            )
        decoder = config.sentence_decoder_config
        limit = getattr(decoder, "max_position_embeddings", None)
        tokens = len(ids) + settings.max_new_tokens
        # Only learned positions end, and only where they go on from sentence to sentence.
        learned = not hasattr(decoder, "rope_parameters") and config.decoder_context_length > 0
        if learned and limit is not None and tokens > limit:
            return ValueError(
                f"the prompt is too long: with what is to be written it has {tokens} tokens, and the decoder reads "
                f"{limit} (`max_position_embeddings`). Cut it, or lower `max_new_tokens`."
            )
        return None

    @torch.no_grad()
    def _write(self, prompts: list[Prompt]) -> list[Written]:
        """Continues a batch of prompts."""
        settings, device = self.settings, self.model.device
        length = max(len(prompt.ids) for prompt in prompts)
        padding = [length - len(prompt.ids) for prompt in prompts]
        pad = self.ends[0]
        rows = [[pad] * size + prompt.ids for size, prompt in zip(padding, prompts, strict=True)]
        mask = (torch.arange(length) >= torch.tensor(padding)[:, None]).long()
        processors = LogitsProcessorList()
        if not settings.greedy:
            seeds = [prompt.seed for prompt in prompts]
            sampling = RowSampling(seeds, length, pad, settings.temperature, settings.top_k, settings.top_p)
            processors.append(sampling)
        written = self.model.generate(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=mask.to(device),
            max_sentences=settings.max_sentences,
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=self.ends,
            pad_token_id=pad,
            logits_processor=processors,
        ).cpu()
        mask = torch.cat([mask, torch.ones_like(written[:, length:])], 1).bool()
        layout = self.segmenter.layout(written, mask)
        closes = layout.scatter(layout.token_closes)[:, length:].tolist()
        return [self._written(*row) for row in zip(prompts, written[:, length:].tolist(), closes, strict=True)]

    def _written(self, prompt: Prompt, new: list[int], closes: list[bool]) -> Written:
        """What a row has written, without what fills it, from new tokens and which of them close their sentences."""
        size = sentences = 0
        ended = False
        # Rows are filled with an end of text: what comes after so many sentences is such a filling.
        while size < len(new) and sentences < self.settings.max_sentences and not ended:
            sentences += closes[size]
            ended = new[size] in self.ends
            size += 1
        before = len(self._decode(prompt.ids))
        return Written(self._decode([*prompt.ids, *new[:size]])[before:], size, sentences, ended)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))
