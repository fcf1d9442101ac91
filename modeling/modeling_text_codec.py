"""The text codec: a text is a box in [0, 1)^D, as large as it is likely; each point of the box decodes to it.

AriEL, arXiv 2003.13600: arithmetic coding by a language model, token i along coordinate i mod D. With one coordinate a
point's digits are the text, compressed.
"""

import copy
import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from .codec_frequencies import DoublePrecision, find_ties, frequencies_of, grid_levels, round_levels
from .codec_ranges import RangeDecoder, RangeEncoder
from .codec_windows import TokenReader, make_windows, read_windows
from .configuration_text_codec import TextCodecConfig
from .modeling_sllm import SllmForCausalLM
from .validation_loading import check_language_model

# A point in the box: each coordinate by its digits of base 256, `b"\x80"` is 1/2.
Point = tuple[bytes, ...]

END_OF_BYTES = 256


@dataclass
class Choices:
    """How a text narrows the intervals: a start, a size and a total for each token, and the ties before it."""

    starts: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)
    ties: dict[int, list[int]] = field(default_factory=dict)

    @property
    def bits(self) -> float:
        """The text's code length."""
        return sum(math.log2(total / size) for size, total in zip(self.sizes, self.totals, strict=True))


class TextCodecModel(PreTrainedModel):
    """Texts to points and back by a causal language model, which is computed in float64."""

    config: TextCodecConfig
    config_class = TextCodecConfig
    base_model_prefix = "codec"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    _auto_class = "AutoModel"  # saving a model saves its code too
    _supports_sdpa = True

    def __init__(self, config: TextCodecConfig):
        super().__init__(config)
        is_sllm = config.text_config.model_type == "sllm"
        make = SllmForCausalLM if is_sllm else AutoModelForCausalLM.from_config
        self.language_model = make(config.text_config)
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        return False  # as in `SentenceVaePreTrainedModel`

    @classmethod
    def from_language_model(cls, language_model: Any, **fields: Any) -> "TextCodecModel":
        """A codec by a language model: by the name or the path of one, or by a copy of one that is loaded.

        Args:
            language_model: Any causal language model of transformers, an SLLM among them.
            fields: Of `TextCodecConfig`.

        Raises:
            TypeError: If it is no causal language model.
        """
        if not isinstance(language_model, PreTrainedModel):
            language_model = AutoModelForCausalLM.from_pretrained(language_model)
        check_language_model(language_model)
        if getattr(language_model.config, "samples_latents", False):
            raise ValueError(
                "`latent_predictor` of the language model samples latents: it has no exact probabilities. Take one "
                'whose type is "linear" or "mse".'
            )
        config = TextCodecConfig(text_config=copy.deepcopy(language_model.config), **fields)
        model = cls(config).to(language_model.device)
        model.language_model.load_state_dict(language_model.state_dict())
        return model.double().eval()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        """What the language model returns."""
        return self.language_model(input_ids=input_ids, **kwargs)

    def encode(
        self,
        texts: list[str],
        tokenizer: PreTrainedTokenizerBase,
        dimensions: int | None = None,
        batch_size: int = 16,
        shortest: bool = True,
    ) -> list[Point]:
        """Exact points of texts, each of the fewest digits.

        Args:
            texts: Any; also files' bytes that were decoded with `errors="surrogateescape"`.
            tokenizer: The language model's.
            dimensions: Coordinates, by default the config's.
            batch_size: How many windows of `context_length` tokens are read at once.
            shortest: Write the bytes of a text that the language model would make longer, too; those of a text that
                the tokenizer does not give back are written in any case.

        Raises:
            ValueError: If a text has surrogates that no file's bytes give.
        """
        encoders = self._encoders(texts, tokenizer, dimensions, batch_size, shortest)
        return [tuple(encoder.finish() for encoder in row) for row in encoders]

    def decode(
        self,
        points: list[Point],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
        batch_size: int = 64,
    ) -> list[str]:
        """The texts of points. One that no text was encoded to may be cut off: where its digits end, or after
        `max_length` tokens."""
        order = sorted(range(len(points)), key=lambda index: -max(map(len, points[index])))
        texts = [""] * len(points)
        for begin in range(0, len(points), batch_size):
            indices = order[begin : begin + batch_size]
            decoded = self._decode_batch([points[index] for index in indices], tokenizer, max_length)
            for index, text in zip(indices, decoded, strict=True):
                texts[index] = text
        return texts

    def encode_floats(
        self,
        texts: list[str],
        tokenizer: PreTrainedTokenizerBase,
        dimensions: int | None = None,
        dtype: torch.dtype = torch.float64,
        batch_size: int = 16,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The middle of each text's box, rounded to floats.

        Returns:
            Points `(texts, dimensions)`; and `(texts,)` whether the rounded point still lies in the box, so that the
            text comes back. float64 holds about 53 bits a coordinate, float32 24, and a text of B bits needs B /
            dimensions of them, spread unevenly.
        """
        encoders = self._encoders(texts, tokenizer, dimensions, batch_size, False)
        boxes = [[encoder.interval() for encoder in row] for row in encoders]
        middles = [[float(low + width / 2) for low, width in row] for row in boxes]
        points = torch.tensor(middles, dtype=torch.float64).to(dtype)
        fits = [
            all(low <= Fraction(value) < low + width for (low, width), value in zip(box, row, strict=True))
            for box, row in zip(boxes, points.tolist(), strict=True)
        ]
        return points, torch.tensor(fits, dtype=torch.bool)

    def decode_floats(
        self,
        points: torch.Tensor,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
        batch_size: int = 64,
    ) -> list[str]:
        """The texts of points `(texts, dimensions)`; see `decode`.

        Raises:
            ValueError: If a coordinate is not in [0, 1).
        """
        if not bool(((points >= 0) & (points < 1)).all()):
            raise ValueError("`points` has a coordinate outside [0, 1): the box has no more. Clamp or scale them.")
        exact = [tuple(digits_of(Fraction(value)) for value in row) for row in points.double().tolist()]
        return self.decode(exact, tokenizer, max_length, batch_size)

    def sample(
        self,
        count: int,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 256,
        dimensions: int | None = None,
        generator: torch.Generator | None = None,
    ) -> list[str]:
        """Texts of points drawn uniformly from the box: samples of the language model."""
        dimensions = dimensions or self.config.dimensions
        digits = 8 * math.ceil((max_length + 1) / dimensions) + 16  # more than the tokens can use up, bar rare ones
        drawn = torch.randint(256, (count, dimensions, digits), generator=generator)
        points = [tuple(bytes(coordinate) for coordinate in point) for point in drawn.tolist()]
        return self.decode(points, tokenizer, max_length)

    @torch.no_grad()
    def code_lengths(self, texts: list[str], tokenizer: PreTrainedTokenizerBase, batch_size: int = 16) -> list[float]:
        """Bits of each text by the rounded probabilities, its end included: minus log2 of its box's volume.

        Raises:
            ValueError: If the tokenizer does not give a text back.
        """
        ids = self._tokenize(texts, tokenizer)
        if None in ids:
            raise ValueError(f"`texts` has {texts[ids.index(None)]!r}, which the tokenizer does not give back.")
        return [choices.bits for choices in self._choices(ids, batch_size)]

    def _encoders(self, texts, tokenizer, dimensions, batch_size, shortest) -> list[list[RangeEncoder]]:
        """The encoders `(texts, dimensions)` of texts, all choices made."""
        written = [bytes_of(text) for text in texts]
        ids = self._tokenize(texts, tokenizer)
        places = [index for index, row in enumerate(ids) if row is not None]
        choices = dict(zip(places, self._choices([ids[index] for index in places], batch_size), strict=True))
        rows = []
        for index, raw in enumerate(written):
            row = [RangeEncoder() for _ in range(dimensions or self.config.dimensions)]
            by_bytes = 41 + math.log2(self.config.text_config.vocab_size) + 8.006 * len(raw)
            if index in choices and not (shortest and choices[index].bits > by_bytes):
                narrow_by_choices(row, choices[index], self.config.text_config.vocab_size)
            else:
                narrow_by_bytes(row, raw, self.config.text_config.vocab_size)
            rows.append(row)
        return rows

    def _tokenize(self, texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int] | None]:
        """The ids of each text, with its end; none of a text that they do not give back."""
        plain = [index for index, text in enumerate(texts) if is_unicode(text)]
        ids: list[list[int] | None] = [None] * len(texts)
        if not plain:
            return ids
        found = tokenizer([texts[index] for index in plain], add_special_tokens=False, split_special_tokens=True)
        for index, row in zip(plain, found["input_ids"], strict=True):
            if self.config.end_token_id not in row and text_of(row, tokenizer) == texts[index]:
                ids[index] = [*row, self.config.end_token_id]
        return ids

    @torch.no_grad()
    def _choices(self, sequences: list[list[int]], batch_size: int) -> list[Choices]:
        """How each sequence of tokens narrows the intervals."""
        config = self.config
        made = [Choices() for _ in sequences]
        self.double()
        windows = make_windows(sequences, config.start_token_id, config.context_length)
        with DoublePrecision():
            for window, logits in read_windows(self.language_model, windows, batch_size):
                levels = grid_levels(logits / config.temperature, config.logit_step)
                rounded = round_levels(levels)
                sizes = frequencies_of(rounded, config.logit_step)
                targets = torch.tensor(window.targets, device=logits.device)[:, None]
                size = sizes.gather(1, targets)
                ends = sizes.cumsum(1)
                choices = made[window.text]
                read = len(choices.starts)
                choices.starts += (ends.gather(1, targets) - size).flatten().tolist()
                choices.sizes += size.flatten().tolist()
                choices.totals += ends[:, -1].tolist()
                for row, token, up in find_ties(levels, rounded, config.logit_step, config.logit_margin).tolist():
                    choices.ties.setdefault(read + row, []).append(2 * token + up)
        return made

    @torch.no_grad()
    def _decode_batch(self, points: list[Point], tokenizer, max_length) -> list[str]:
        """The texts of some points, a token of each at a time."""
        config = self.config
        self.double()
        reader = TokenReader(self.language_model, len(points), config.start_token_id, config.context_length)
        decoders = [[RangeDecoder(digits) for digits in point] for point in points]
        tokens: list[list[int]] = [[] for _ in points]
        texts = [""] * len(points)
        alive = list(range(len(points)))  # the text of each row
        step = 0
        while alive and step != max_length:
            with DoublePrecision():
                levels = grid_levels(reader.next_logits() / config.temperature, config.logit_step)
            rounded = round_levels(levels)
            ended = {}
            for row, index in enumerate(alive):
                raw = self._read_escapes(decoders[index], step, levels[row], rounded[row])
                if raw is not None:
                    ended[row] = text_of(tokens[index], tokenizer) + raw.decode("utf-8", "surrogateescape")
            sizes = frequencies_of(rounded, config.logit_step)
            ends = sizes.cumsum(1)
            active = [decoders[index][step % len(decoders[index])] for index in alive]
            totals = ends[:, -1].tolist()
            places = [decoder.place(total) for decoder, total in zip(active, totals, strict=True)]
            chosen = torch.searchsorted(ends, torch.tensor(places, device=ends.device)[:, None], right=True)
            size = sizes.gather(1, chosen)
            starts, found = (ends.gather(1, chosen) - size).flatten(), size.flatten().tolist()
            for row, (index, start, token) in enumerate(
                zip(alive, starts.tolist(), chosen.flatten().tolist(), strict=True)
            ):
                if row in ended:
                    continue
                active[row].narrow(start, found[row], totals[row])
                if token == config.end_token_id or any(decoder.is_exhausted for decoder in decoders[index]):
                    ended[row] = text_of(tokens[index], tokenizer)
                else:
                    tokens[index].append(token)
            for row, text in ended.items():
                texts[alive[row]] = text
            reader.append(chosen.flatten())
            if ended:
                left = [row for row in range(len(alive)) if row not in ended]
                alive = [alive[row] for row in left]
                if alive:
                    reader.keep(torch.tensor(left, device=ends.device))
            step += 1
        for index in alive:
            texts[index] = text_of(tokens[index], tokenizer)
        return texts

    def _read_escapes(self, decoders, step: int, levels: torch.Tensor, rounded: torch.Tensor) -> bytes | None:
        """Reads what stands before a token: ties, which set the rounded levels `(vocab,)` right in place, or the
        text's bytes, which are returned."""
        decoder = decoders[step % len(decoders)]
        vocab_size = self.config.text_config.vocab_size
        while decoder.escape():
            kind = decoder.uniform(2 * vocab_size + 1)
            if kind == 2 * vocab_size:
                return read_bytes(decoder)
            rounded[kind // 2] = levels[kind // 2].floor().long() + kind % 2
        return None


def narrow_by_choices(encoders: list[RangeEncoder], choices: Choices, vocab_size: int) -> None:
    """Writes the tokens of a text, token i to encoder i mod D."""
    parts = zip(choices.starts, choices.sizes, choices.totals, strict=True)
    for step, (start, size, total) in enumerate(parts):
        encoder = encoders[step % len(encoders)]
        for tie in choices.ties.get(step, ()):
            encoder.escape(True)
            encoder.narrow(tie, 1, 2 * vocab_size + 1)
        encoder.escape(False)
        encoder.narrow(start, size, total)


def narrow_by_bytes(encoders: list[RangeEncoder], raw: bytes, vocab_size: int) -> None:
    """Writes a text's bytes, all to the first encoder."""
    encoders[0].escape(True)
    encoders[0].narrow(2 * vocab_size, 1, 2 * vocab_size + 1)
    for byte in (*raw, END_OF_BYTES):
        encoders[0].narrow(byte, 1, END_OF_BYTES + 1)


def read_bytes(decoder: RangeDecoder) -> bytes:
    """See `narrow_by_bytes`."""
    raw = bytearray()
    while (byte := decoder.uniform(END_OF_BYTES + 1)) != END_OF_BYTES and not decoder.is_exhausted:
        raw.append(byte)
    return bytes(raw)


def interpolate(first: Point, second: Point, steps: int) -> list[Point]:
    """`steps` + 1 exact points on the straight line from one point to another, both included."""
    if len(first) != len(second):
        raise ValueError(f"`second` has {len(second)} coordinates and `first` {len(first)}: they must have as many.")
    ends = [(fraction_of(low), fraction_of(high)) for low, high in zip(first, second, strict=True)]
    between = [
        tuple(digits_of(low + (high - low) * Fraction(step, steps)) for low, high in ends) for step in range(1, steps)
    ]
    return [first, *between, second]


def fraction_of(digits: bytes) -> Fraction:
    """The number in [0, 1) that digits of base 256 write."""
    return Fraction(int.from_bytes(digits, "big"), 256 ** len(digits))


def digits_of(value: Fraction) -> bytes:
    """Digits of a number in [0, 1): all of a binary fraction, else 8 more than the denominator has."""
    count = value.denominator.bit_length() // 8 + 8
    return (value.numerator * 256**count // value.denominator).to_bytes(count, "big")


def text_of(token_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """What tokens stand for, nothing left out or tidied."""
    return tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def is_unicode(text: str) -> bool:
    """Whether a text has no surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def bytes_of(text: str) -> bytes:
    """A text's bytes.

    Raises:
        ValueError: If they do not give it back.
    """
    raw = text.encode("utf-8", "surrogateescape")
    if raw.decode("utf-8", "surrogateescape") != text:
        raise ValueError(f"`texts` has {text[:40]!r}, whose surrogates stand for valid UTF-8: decode its bytes first.")
    return raw


__all__ = ["TextCodecModel"]
