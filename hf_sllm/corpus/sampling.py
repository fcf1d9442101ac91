"""Sampling in which each row of a batch draws from its own seed, so that its text depends on no other row.

To sample, `generate` draws from one generator for the whole batch. Here a logits processor draws, and greedy search
takes what it drew. The draw is the likeliest token after independent Gumbel noise was added to the scores, which is a
sample of their distribution (Maddison et al., arXiv 1411.0030, section 2). The noise is a function of the row's seed,
of how many tokens the row has written, and of the token: the same in any batch and at any place in it.
"""

import hashlib

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

# The odd constants of SplitMix64 (Steele et al., OOPSLA 2014), as signed integers of 64 bits.
STEP, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def row_seed(row_id: str, seed: int) -> int:
    """A signed integer of 64 bits for each row and each seed of the run."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{row_id}".encode()).digest()[:8], "big", signed=True)


class RowSampling(LogitsProcessor):
    """Leaves each row the one token that it draws; for `generate(do_sample=False)`.

    Args:
        seeds: Of each row of the batch.
        prompt_length: Columns of `input_ids` before the first token that is written, padding included.
        pad_token_id: What `generate` fills rows with that have written fewer tokens. No row goes on after it.
        temperature, top_k, top_p: As in a `GenerationConfig`; `None` changes nothing.
    """

    def __init__(
        self,
        seeds: list[int],
        prompt_length: int,
        pad_token_id: int,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
    ):
        self.seeds = torch.tensor(seeds)
        self.drawn_at = torch.zeros_like(self.seeds)  # the length at which each row has drawn last
        self.prompt_length = prompt_length
        self.pad_token_id = pad_token_id
        self.warpers = LogitsProcessorList()
        if temperature not in (None, 1.0):
            self.warpers.append(TemperatureLogitsWarper(temperature))
        if top_k:
            self.warpers.append(TopKLogitsWarper(top_k))
        if top_p is not None and top_p < 1:
            self.warpers.append(TopPLogitsWarper(top_p))

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Returns the scores `(batch, vocab)`, 0 for the token drawn and minus infinity for all others.

        The sentence loop calls this once for each length that rows have, with all rows, and takes the scores of those
        of that length. No others need to draw: rows that are shorter end in padding here, and those that are longer
        have drawn at a greater length, but for some that draw again in vain.
        """
        length = input_ids.shape[1]
        goes_on = input_ids[:, -1].cpu() != self.pad_token_id
        rows = ((self.drawn_at <= length) & (goes_on | (length == self.prompt_length))).nonzero().squeeze(1)
        self.drawn_at[rows] = length
        seeds, rows = self.seeds[rows].to(scores.device), rows.to(scores.device)
        allowed = self.warpers(input_ids[rows], scores[rows])  # type: ignore[arg-type]
        drawn = (allowed + gumbel_noise(seeds, length - self.prompt_length, scores.shape[1])).argmax(-1)
        scores[rows] = -torch.inf
        scores[rows, drawn] = 0.0
        return scores


def gumbel_noise(seeds: torch.Tensor, written: int, vocab_size: int) -> torch.Tensor:
    """`(rows, vocab)` independent standard Gumbel noise for the token after so many, from seeds `(rows,)`."""
    steps = torch.full_like(seeds, written + 1)
    tokens = torch.arange(1, vocab_size + 1, device=seeds.device)
    bits = mixed(mixed(seeds + STEP * steps)[:, None] + STEP * tokens)
    # The upper 53 bits as a number between 0 and 1, neither of which it is.
    uniform = (shifted(bits, 11).double() + 0.5) * 2.0**-53
    return -(-uniform.log()).log()


def mixed(values: torch.Tensor) -> torch.Tensor:
    """The finaliser of SplitMix64: each of the 64 bits depends on all of the given ones. Products wrap around."""
    values = (values ^ shifted(values, 30)) * FIRST
    values = (values ^ shifted(values, 27)) * SECOND
    return values ^ shifted(values, 31)


def shifted(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Shifted to the right as unsigned integers."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
