"""The rows of a batch that is being written: sentences end at different times, so rows grow at different times."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from transformers.generation.utils import GenerateDecoderOnlyOutput


class Rows:
    """The text of each row, padded on the right, and what the row does: it writes, waits for the others, or is done.

    What is decided of each row is in lists: tensors of so few values take longer.

    Args:
        input_ids: `(batch, length)`, after which each row goes on.
        generation_config (`GenerationConfig`): How tokens are chosen, and what is kept beside them.
    """

    def __init__(self, input_ids: torch.Tensor, generation_config: Any):
        self.ids = input_ids.long()  # as the token loop gives them, whatever the prompt has
        self.last = input_ids[:, -1]  # (batch,) each row's newest token
        batch_size, self.prompt_length = input_ids.shape
        self.lengths = [self.prompt_length] * batch_size
        self.writing = [True] * batch_size
        self.waiting = [False] * batch_size  # has written the token that closes its sentence, which is not yet fed
        self.finished = [False] * batch_size
        self.sentences = [0] * batch_size  # closed here
        self.do_sample = generation_config.do_sample
        padding = generation_config._pad_token_tensor
        self.pad_token_id = 0 if padding is None else int(padding)
        self.returns_dict = generation_config.return_dict_in_generate
        self.scores: list[torch.Tensor] | None = [] if self.returns_dict and generation_config.output_scores else None
        self.logits: list[torch.Tensor] | None = [] if self.returns_dict and generation_config.output_logits else None
        # Of each layer the states at each step, and whether there is a place for attentions, of which there are none.
        self.layers: list[list[torch.Tensor]] | None = None
        self.keeps_layers = self.returns_dict and generation_config.output_hidden_states
        self.keeps_attentions = self.returns_dict and generation_config.output_attentions
        self.newest: tuple[torch.Tensor] | None = None  # of the scores, if kept, what criteria look at

    def write(
        self, logits: torch.Tensor, logits_processor: Callable, layers: Sequence[torch.Tensor] | None = None
    ) -> None:
        """Chooses a token from `(batch, vocab)` logits for each row that neither waits nor is done. They come from the
        last of the layers' states, `(batch, 1, width)`, which are kept if `generate` returns them."""
        self.writing = [not (done or waits) for done, waits in zip(self.finished, self.waiting, strict=True)]
        scores = self._by_length(lambda ids: logits_processor(ids, logits.clone()), logits)
        if self.do_sample:
            drawn_from = choose(self.writing, scores, torch.zeros_like(scores))  # of others nothing is known
            tokens = torch.multinomial(drawn_from.softmax(-1), 1).squeeze(1)
        else:
            tokens = scores.argmax(-1)
        if self.scores is not None:
            self._store(self.scores, scores, -torch.inf)
            self.newest = (scores,)
        if self.logits is not None:
            self._store(self.logits, logits, 0.0)
        if self.keeps_layers and layers is not None:
            self.layers = [[] for _ in layers] if self.layers is None else self.layers
            for steps, states in zip(self.layers, layers, strict=True):
                self._store(steps, states, 0.0)
        self.last = choose(self.writing, tokens, self.last)
        self._append()

    def note(self, closes: torch.Tensor, stopping_criteria: Callable, max_sentences: float) -> None:
        """Takes in which of the newest tokens close their sentences, `(batch,)`, and which rows have to stop."""
        stops = self._by_length(partial(stopping_criteria, scores=self.newest), closes)
        for row, (stopped, closed) in enumerate(torch.stack([stops, closes], 1).tolist()):
            if self.writing[row]:
                self.sentences[row] += closed
                self.waiting[row] = closed
                self.finished[row] = stopped or (closed and self.sentences[row] >= max_sentences)

    def to_feed(self) -> tuple[list[bool], bool]:
        """Which rows' newest tokens are fed to the model next, and whether these close their sentences."""
        states = zip(self.writing, self.waiting, self.finished, strict=True)
        feeding = [writes and not (waits or done) for writes, waits, done in states]
        if any(feeding):
            return feeding, False
        # Every row has closed its sentence: the backbone takes them all in at once.
        feeding = [waits and not done for waits, done in zip(self.waiting, self.finished, strict=True)]
        self.waiting = [False] * len(feeding)
        return feeding, True

    def output(self, cache: Any) -> torch.Tensor | GenerateDecoderOnlyOutput:
        """What `generate` returns: the ids, and if asked what is kept beside them."""
        cache.leave_inference_mode()  # it may be the caller's own
        if not self.returns_dict:
            return self.ids
        # In a batch, rows that waited have columns in the cache that the text has not.
        cache = cache if len(self.ids) == 1 else None
        scores, logits = (None if steps is None else tuple(steps) for steps in (self.scores, self.logits))
        layers = None if self.layers is None else tuple(zip(*self.layers, strict=True))
        steps = max(self.lengths) - self.prompt_length
        return GenerateDecoderOnlyOutput(
            sequences=self.ids,
            scores=scores,
            logits=logits,
            attentions=(None,) * steps if self.keeps_attentions else None,
            hidden_states=layers,
            past_key_values=cache,
        )

    def _append(self) -> None:
        places = {row: self.lengths[row] for row, writes in enumerate(self.writing) if writes}
        if self.ids.shape[1] in places.values():
            self.ids = torch.cat([self.ids, torch.full_like(self.ids[:, :1], self.pad_token_id)], 1)
        self.ids[list(places), list(places.values())] = self.last[list(places)]
        self.lengths = [length + writes for length, writes in zip(self.lengths, self.writing, strict=True)]

    def _by_length(self, function: Callable, default: torch.Tensor) -> torch.Tensor:
        """Calls a function of `(batch, length)` ids once for each length that the writing rows have, so that each row
        is judged by exactly its own ids; returns what it says of these rows, and the default for the others."""
        result = default
        for length in {length for length, writes in zip(self.lengths, self.writing, strict=True) if writes}:
            chosen = [writes and own == length for writes, own in zip(self.writing, self.lengths, strict=True)]
            result = choose(chosen, function(self.ids[:, :length]), result)
        return result

    def _store(self, steps: list[torch.Tensor], values: torch.Tensor, empty: float) -> None:
        """Puts the writing rows' values into the step that each row is at, as the token loop would."""
        for row, writes in enumerate(self.writing):
            if writes:
                step = self.lengths[row] - self.prompt_length
                if step == len(steps):
                    steps.append(torch.full_like(values, empty))
                steps[step][row] = values[row]


def choose(rows: list[bool], values: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The values `(batch, …)` of the chosen rows, and the others of the others."""
    if all(rows):
        return values
    return torch.where(torch.tensor(rows, device=values.device).view(-1, *[1] * (values.dim() - 1)), values, others)
