"""Which sentence each token belongs to.

A sentence that is long enough is closed by a token of the boundary table, any by `eos` or by reaching the maximum
length. Whether a token closes its sentence depends on no later token, so the segmentation is the same in training and
in generation. Nothing here knows about models: token ids in, a `SentenceLayout` out.
"""

import re
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Sentence-final punctuation of the larger scripts, then closing quotes and brackets, then space.
_SENTENCE_END = re.compile(r"[.!?…。！？｡।॥؟۔։።][\"'”’»›」』)\]}*_]*\s*$|[\n\r\u2028\u2029]")
_CLAUSE_END = re.compile(r"[,;:，；：、،؛][\"'”’»›」』)\]}*_]*\s*$")


def boundary_tokens(tokenizer: PreTrainedTokenizerBase, unit: str = "sentence") -> dict[str, list[int]]:
    """The tokens of a vocabulary that close a sentence, as the two fields of the config.

    Args:
        tokenizer: Any transformers tokenizer.
        unit: `"sentence"`: tokens whose text ends in sentence-final punctuation, with optional closing quotes or
            brackets, or holds a line break. `"clause"`: also those that end in a comma, colon or semicolon, which
            close once `min_clause_length` is reached.

    Returns:
        `{"boundary_token_ids": [...], "clause_token_ids": [...]}`.

    Raises:
        ValueError: If `unit` is neither, or no token of the vocabulary closes a sentence.
    """
    if unit not in ("sentence", "clause"):
        raise ValueError(f'`unit` is {unit!r}: it must be "sentence" or "clause".')
    special = set(tokenizer.all_special_ids)
    texts = {
        token_id: str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
        for token_id in range(len(tokenizer))
        if token_id not in special
    }
    boundaries = [token_id for token_id, text in texts.items() if _SENTENCE_END.search(text)]
    if not boundaries:
        raise ValueError(
            "no token of this tokenizer ends in sentence-final punctuation or holds a line break: pass "
            "`boundary_token_ids` yourself, or `sentence_ids` with each batch."
        )
    clauses = [token_id for token_id, text in texts.items() if _CLAUSE_END.search(text)] if unit == "clause" else []
    return {"boundary_token_ids": boundaries, "clause_token_ids": sorted(set(clauses) - set(boundaries))}


def end_tokens(tokenizer: PreTrainedTokenizerBase | None, *configs: PreTrainedConfig) -> list[int]:
    """The tokens that end a text or a turn of a chat, each once.

    Args:
        tokenizer: Its `eos`, and the special tokens with which its chat template ends a turn.
        configs: Whose `eos_token_id` count, which come first: a model's config, its generation config.
    """
    found: list[int] = []
    for holder in (*configs, tokenizer):
        ends = getattr(holder, "eos_token_id", None)
        found += [] if ends is None else [ends] if isinstance(ends, int) else ends
    return list(dict.fromkeys([*found, *_ends_of_turns(tokenizer)]))


def _ends_of_turns(tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """The special tokens that a chat template puts after what the assistant says."""
    if getattr(tokenizer, "chat_template", None) is None:
        return []
    said = "Good-day"
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": said}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception as error:  # of the template's own language, or what it raises: it wants other turns, for instance
        logger.warning(f"The chat template could not be asked which tokens end a turn: {error}")
        return []
    after = tokenizer(text.rpartition(said)[2], add_special_tokens=False)["input_ids"]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return [token_id for token_id in after if token_id in special]


@dataclass
class SentenceLayout:
    """The sentences of a batch, flat: `N` tokens that are not padding, in `S` sentences, row after row.

    Attributes:
        mask: `(batch, length)` bool, true where a token of these sentences is.
        token_index: `(N,)` index of each token in the flattened `(batch, length)` input.
        token_sentence: `(N,)` its sentence, `0..S-1`.
        token_closes: `(N,)` whether it closes its sentence.
        token_row: `(N,)` its row.
        token_rank: `(N,)` its number among the row's tokens.
        token_offset: `(N,)` its offset in the sentence.
        sentence_row: `(S,)` the row of each sentence.
        sentence_rank: `(S,)` its number among the row's sentences.
        sentence_closed: `(S,)` whether the input closes it.
    """

    mask: torch.Tensor
    token_index: torch.Tensor
    token_sentence: torch.Tensor
    token_closes: torch.Tensor

    def __post_init__(self):
        self.token_row = self.token_index // self.mask.shape[1]
        self.token_rank = ranks(self.token_row)
        self.token_offset = ranks(self.token_sentence)
        first = self.token_offset == 0
        self.sentence_row = self.token_row[first]
        self.sentence_rank = ranks(self.sentence_row)
        self.sentence_closed = self.token_closes[first.roll(-1)]

    def scatter(self, values: torch.Tensor, elsewhere: float = 0) -> torch.Tensor:
        """Values `(N, …)` of the tokens at their places in `(batch, length, …)`."""
        flat = values.new_full((self.mask.numel(), *values.shape[1:]), elsewhere)
        return flat.index_copy(0, self.token_index, values).view(*self.mask.shape, *values.shape[1:])

    def closed_sentences(self) -> "SentenceLayout":
        """The layout of the closed sentences alone."""
        return self._select(self.sentence_closed)

    def from_sentence(self, first: torch.Tensor) -> "SentenceLayout":
        """The layout of each row from its sentence number `first`, `(batch,)`, on; ranks are counted from there."""
        return self._select(self.sentence_rank >= first[self.sentence_row])

    def _select(self, keep_sentence: torch.Tensor) -> "SentenceLayout":
        keep = keep_sentence[self.token_sentence]
        sentence = (keep_sentence.cumsum(0) - 1)[self.token_sentence[keep]]
        return SentenceLayout(self.scatter(keep), self.token_index[keep], sentence, self.token_closes[keep])


def ranks(group: torch.Tensor) -> torch.Tensor:
    """The number of each of N among those of its own group, `(N,)`; groups are numbered in order."""
    return torch.arange(len(group), device=group.device) - torch.searchsorted(group, group)


class SentenceSegmenter:
    """Makes layouts by a config's rules. It has no weights; its tables are built once for each device."""

    def __init__(self, config: PreTrainedConfig):
        self.config = config
        self._tables: dict[torch.device, torch.Tensor] = {}

    def closing_strength(self, token_ids: torch.Tensor) -> torch.Tensor:
        """3 for a token that closes any sentence, 2 for one that closes those of `min_sentence_length` tokens or more,
        1 for one that closes those of `min_clause_length` or more, else 0."""
        table = self._tables.get(token_ids.device)
        if table is None:
            eos = self.config.eos_token_id
            eos = [] if eos is None else [eos] if isinstance(eos, int) else eos
            closing = [*eos, *self.config.boundary_token_ids, *self.config.clause_token_ids]
            # Ids above the table's last entry, which is 0, are clamped to it: a resized vocabulary needs no new table.
            table = torch.zeros(max(closing, default=-1) + 2, dtype=torch.int32)
            table[self.config.clause_token_ids] = 1
            table[self.config.boundary_token_ids] = 2
            table[eos] = 3
            table = self._tables[token_ids.device] = table.to(token_ids.device)
        return table[token_ids.clamp(max=len(table) - 1)]

    def closes(self, token_ids: torch.Tensor, open_length: torch.Tensor) -> torch.Tensor:
        """Whether each token closes a sentence that has `open_length` tokens before it; all of shape `(batch,)`."""
        return self._may_close(self.closing_strength(token_ids), open_length + 1)

    def layout(
        self,
        token_ids: torch.Tensor | None,
        mask: torch.Tensor,
        sentence_ids: torch.Tensor | None = None,
        boundary_dropout: float = 0.0,
    ) -> SentenceLayout:
        """
        Args:
            token_ids: `(batch, length)`; may be `None` if `sentence_ids` is given.
            mask: `(batch, length)` bool, true where a token counts.
            sentence_ids: `(batch, length)` explicit sentences: consecutive tokens with equal ids are one, cut at the
                maximum length. The last one of a row stays open.
            boundary_dropout: Share of the ends of sentences to overlook, drawn at random.
        """
        token_index = mask.flatten().nonzero().squeeze(1)
        token_row = token_index // mask.shape[1]
        ends_row = F.pad(token_row.diff() != 0, (0, 1), value=True)[: len(token_row)]
        if sentence_ids is None:
            strength = self.closing_strength(token_ids.flatten()[token_index])
        else:
            ends = F.pad(sentence_ids.flatten()[token_index].diff() != 0, (0, 1))[: len(token_row)]
            strength = 3 * (ends & ~ends_row).to(torch.int32)
        if boundary_dropout > 0:
            strength = strength * (torch.rand(len(strength), device=mask.device) >= boundary_dropout)
        starts = self._sentence_starts(strength, ends_row)
        sentence = starts.cumsum(0) - 1
        closes = starts.roll(-1) & self._may_close(strength, ranks(sentence) + 1)
        return SentenceLayout(mask, token_index, sentence, closes)

    def _may_close(self, strength: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        """Whether tokens of these strengths close sentences that have so many tokens with them."""
        config = self.config
        least = [config.max_sentence_length, config.min_clause_length, config.min_sentence_length, 1]
        return size >= strength.new_tensor(least).clamp(max=config.max_sentence_length)[strength]

    def _sentence_starts(self, strength: torch.Tensor, ends_row: torch.Tensor) -> torch.Tensor:
        """Whether each of the `(N,)` tokens begins a sentence.

        A sentence that begins at token s ends at the first token that may close it, so the starts are the orbit of
        token 0 under "the token after the end of s". Doubling the step finds the whole orbit in log2(N) rounds.
        """
        total = len(strength)
        order = torch.arange(total, device=strength.device)  # plus n - 1: the end of a sentence of n tokens from here
        end = torch.minimum(order + self.config.max_sentence_length - 1, _next_true(ends_row)[:-1])
        for closing, length in ((3, 1), (2, self.config.min_sentence_length), (1, self.config.min_clause_length)):
            end = torch.minimum(end, _next_true(strength == closing)[(order + length - 1).clamp(max=total)])
        step = torch.cat([end + 1, end.new_tensor([total])])
        reached = torch.zeros(total + 1, dtype=torch.bool, device=strength.device)
        reached[0] = True
        for _ in range(total.bit_length()):
            reached[step[reached]] = True
            step = step[step]
        return reached[:-1]


def _next_true(flags: torch.Tensor) -> torch.Tensor:
    """For each position of `(N,)` flags, and for N: the first true position at or after it, or N."""
    total = len(flags)
    position = torch.arange(total + 1, device=flags.device)
    position[:-1].masked_fill_(~flags, total)
    return position.flip(0).cummin(0).values.flip(0)
