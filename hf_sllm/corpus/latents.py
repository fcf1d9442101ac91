"""From a batch of rows to a batch of latents: each row is a text, each sentence of which becomes a vector."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_sllm.data import start_token_id
from hf_sllm.data.blocks import cut_at_sentences
from hf_sllm.evaluation.loop import evaluation_mode, padded
from hf_sllm.modeling import SentenceSegmenter

from .buckets import in_buckets

if TYPE_CHECKING:
    import pyarrow

# A longer text is cut between sentences, which are encoded apart in any case: no text is too long.
PIECE_TOKENS = 4096

# Tokens of one call, padding included.
CALL_TOKENS = 16384


@dataclass(frozen=True)
class EmbedSettings:
    """How latents are kept.

    Attributes:
        latent_dtype: `float16` or `float32`.
    """

    latent_dtype: str = "float16"

    def __post_init__(self):
        if self.latent_dtype not in ("float16", "float32"):
            raise ValueError(f"`latent_dtype` is {self.latent_dtype!r}: it must be float16 or float32.")


class Piece(NamedTuple):
    """Whole sentences of a text: which text of the batch it is, and token ids."""

    row: int
    ids: list[int]


class SentenceEmbedder:
    """Maps a batch of rows to a batch of latents. It knows nothing of files.

    Args:
        model: An SLLM, or a sentence VAE.
        tokenizer: Its own, a fast one, which knows where in a text each token is.
        settings: How latents are kept.
        batch_size: Texts at a time.

    Raises:
        ValueError: If the model has no latents, or the tokenizer is not a fast one.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: EmbedSettings,
        batch_size: int = 32,
    ):
        if model.config.model_type not in ("sllm", "sentence_vae"):
            raise ValueError(f"this is a {model.config.model_type!r} model, which has no latents of sentences.")
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} does not tell where in a text its tokens are: use a fast one."
            )
        self.model: Any = model
        self.config: Any = model.config
        self.tokenizer = tokenizer
        self.settings = settings
        self.batch_size = batch_size
        # A text begins as it did in training; where nothing is predicted, no start token is part of a sentence.
        self.start = [start_token_id(tokenizer)] if model.config.model_type == "sllm" else []

    @property
    def schema(self) -> "pyarrow.Schema":
        """The columns of the result; those of a row that failed are null, but for its id and its error."""
        import pyarrow as pa

        kind = {"float16": pa.float16(), "float32": pa.float32()}[self.settings.latent_dtype]
        return pa.schema(
            {
                "id": pa.string(),
                "sentences": pa.list_(pa.string()),
                "latents": pa.list_(pa.list_(kind, self.config.num_latents * self.config.latent_size)),
                "error": pa.string(),
            }
        )

    def __call__(self, rows: dict[str, list], advance: Callable[[int], object] = lambda rows: None) -> dict[str, list]:
        """Encodes texts.

        Args:
            rows: The columns `id`, strings, and `text`, strings or `None`.
            advance: Called with the number of rows of each batch that is done.

        Returns:
            `sentences` of a row join to its text; `latents` has for each of them a vector of all its latents.
        """
        texts = [_text(text) for text in rows["text"]]
        fit = [text for text in texts if isinstance(text, str)]
        advance(len(texts) - len(fit))
        with evaluation_mode(self.model):
            found = in_buckets(self._embed, fit, len, self.batch_size, advance)
        left = iter(found)
        results = [next(left) if isinstance(text, str) else text for text in texts]
        kept: list[Any] = [(None, None) if isinstance(result, Exception) else result for result in results]
        return {
            "id": rows["id"],
            "sentences": [sentences for sentences, _ in kept],
            "latents": [None if latents is None else list(latents) for _, latents in kept],
            "error": [str(result) if isinstance(result, Exception) else None for result in results],
        }

    @torch.no_grad()
    def _embed(self, texts: list[str]) -> list[tuple[list[str], np.ndarray]]:
        """The sentences of each text, and their latents `(sentences, num_latents * latent_size)`."""
        encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids_of = [[*self.start, *ids] for ids in encoded["input_ids"]]
        block = max(PIECE_TOKENS, self.config.max_sentence_length)
        pieces = [
            Piece(row, piece) for row, ids in enumerate(ids_of) for piece in cut_at_sentences(ids, self.config, block)
        ]
        latents: list[list[torch.Tensor]] = [[] for _ in texts]
        for batch in calls(pieces):
            token_ids, mask = padded([piece.ids for piece in batch], self.tokenizer, self.model.device)
            layout, values = self.model.base_model.encode_all(token_ids, mask, None)
            counts = torch.bincount(layout.sentence_row, minlength=len(batch)).tolist()
            for piece, own in zip(batch, values.flatten(1).cpu().split(counts), strict=True):
                latents[piece.row].append(own)
        found = []
        for text, ids, offsets, parts in zip(texts, ids_of, encoded["offset_mapping"], latents, strict=True):
            ends = [*[0] * len(self.start), *(end for _, end in offsets)]
            ends[-1] = len(text)  # what no token stands for, such as white space that the tokenizer drops
            sentences = self._sentences(text, ids, ends)
            kept = [place for place, sentence in enumerate(sentences) if sentence is not None]
            found.append(([sentences[place] for place in kept], self._kept(torch.cat(parts)[kept])))
        return found  # type: ignore[return-value]

    def _sentences(self, text: str, ids: list[int], ends: list[int]) -> list[str | None]:
        """The characters of each sentence; `None` for a start token that closes a sentence by itself."""
        token_ids = torch.tensor([ids])
        layout = SentenceSegmenter(self.config).layout(token_ids, torch.ones_like(token_ids, dtype=torch.bool))
        lasts = (torch.bincount(layout.token_sentence).cumsum(0) - 1).tolist()
        found: list[str | None] = []
        begin = 0
        for last in lasts:
            own = last >= len(self.start)
            found.append(text[begin : ends[last]] if own else None)
            begin = ends[last]
        return found

    def _kept(self, latents: torch.Tensor) -> np.ndarray:
        """The latents as they are kept.

        Raises:
            ValueError: If a number has no place in that type.
        """
        values = latents.to(getattr(torch, self.settings.latent_dtype)).numpy()
        if not np.isfinite(values).all():
            raise ValueError(f"a latent is not finite as {self.settings.latent_dtype}: keep float32.")
        return values


def calls(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Pieces in order, so many at a time that they and their padding are `CALL_TOKENS` at most."""
    batch: list[Piece] = []
    for piece in pieces:
        longest = max(len(other.ids) for other in [*batch, piece])
        if batch and (len(batch) + 1) * longest > CALL_TOKENS:
            yield batch
            batch = []
        batch = [*batch, piece]
    yield batch


def _text(text: str | None) -> str | ValueError:
    """A text, or why it has no latents."""
    if text is None or not text.strip():
        return ValueError("the text is empty.")
    return text
