"""Generation: transformers' own loops, which go token by token, and a loop that goes sentence by sentence.

The sentence loop writes the same text. Rows of a batch that have closed their sentence wait for the others, so that
the backbone runs once per sentence for the whole batch, not each time some row closes one.
"""

import copy
import math
from collections.abc import Callable
from functools import partial, wraps

import torch
from transformers import GenerationMixin
from transformers.generation.utils import GenerateDecoderOnlyOutput

from .generation_ahead import write_in_parallel
from .stream_cache import SllmCache
from .token_shortlist import ShortlistedHead, fit_directions


class SllmGenerationMixin(GenerationMixin):
    """`generate` for the sentence-level language model."""

    # What `fit_shortlist` found: `(rank, width)` and `(rank, vocab)`.
    shortlist_fit: tuple[torch.Tensor, torch.Tensor] | None = None

    @torch.no_grad()
    def fit_shortlist(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, rank: int | None = None
    ) -> None:
        """Fits the lists of `generate(shortlist_size=…)` to some text of the kind to be written. Not saved.

        Args:
            input_ids: `(batch, length)`; a few thousand tokens are enough.
            attention_mask: `(batch, length)`, 0 for padding.
            rank: Directions of a state from which its logits are guessed: more of them guess better, more slowly. By
                default 128, or the model's width if that is less.

        Raises:
            ValueError: If the text has fewer tokens than `rank`, or `rank` is below 1 or above the model's width.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        width = self.lm_head.weight.shape[1]
        rank = min(128, width) if rank is None else rank
        if not 1 <= rank <= min(width, int(mask.sum())):
            raise ValueError(
                f"`rank` is {rank}: it must be from 1 to the model's width, {width}, and `input_ids` must have as "
                f"many tokens; they have {int(mask.sum())}."
            )
        states = self.model(input_ids, mask).last_hidden_state
        self.shortlist_fit = fit_directions(states[mask.bool()], self.lm_head.weight, rank)

    def generate(
        self,
        inputs=None,
        generation_config=None,
        *args,
        max_sentences: float | None = None,
        shortlist_size: int | None = None,
        sentences_at_once: int | None = None,
        **kwargs,
    ):
        """As `GenerationMixin.generate`, with three options more.

        Args:
            max_sentences: Write at most this many sentences (the one that the prompt leaves open is the first), with
                the sentence loop; `math.inf` for no limit. A streamer then gets whole sentences. For greedy search
                and sampling. Where nothing else bounds the length, so many of the longest sentences do.
            shortlist_size: Compute the logits of so many likely tokens only: faster, and rarely another text. It needs
                `max_sentences`, and a model that was fitted (`fit_shortlist`): the other tokens' logits are then
                guessed. Or else one trained with a `bag_of_words_weight`: then a list serves a whole sentence, chosen
                as it begins, and the other tokens are never written.
            sentences_at_once: Write so many sentences side by side, from latents that are predicted that far ahead:
                faster, and another text, see `write_in_parallel`. For a single row. It needs `max_sentences`, and a
                model trained with a `next_latent_weight`.

        Raises:
            ValueError: If `max_sentences` is below 1, or comes with another decoding method, or without a cache; or if
                `shortlist_size` or `sentences_at_once` comes without what it needs.
        """
        if kwargs.get("inputs_embeds") is not None:
            raise ValueError(
                "`inputs_embeds` cannot be continued: they do not show where sentences end. Pass `input_ids`."
            )
        if shortlist_size is not None:
            if max_sentences is None or shortlist_size < 1:
                raise ValueError(
                    f"`shortlist_size` is {shortlist_size}: it must be at least 1, and needs `max_sentences` "
                    "(`math.inf` for no limit)."
                )
            if self.config.bag_of_words_weight == 0 and self.shortlist_fit is None:
                raise ValueError(
                    f"`shortlist_size` is {shortlist_size}, and this model was not fitted: call `fit_shortlist` with "
                    "some text first. Or train it with a `bag_of_words_weight`, which is 0."
                )
        if sentences_at_once is not None:
            if max_sentences is None or sentences_at_once < 1:
                raise ValueError(
                    f"`sentences_at_once` is {sentences_at_once}: it must be at least 1, and needs `max_sentences` "
                    "(`math.inf` for no limit)."
                )
            if self.config.next_latent_weight == 0:
                raise ValueError(
                    f"`sentences_at_once` is {sentences_at_once}, and `next_latent_weight` of this model 0: it has "
                    "not learned to look further than one sentence ahead. Train it with a weight above 0."
                )
        if max_sentences is not None:
            if max_sentences < 1:
                raise ValueError(f"`max_sentences` is {max_sentences}: it must be at least 1.")
            generation_config = copy.deepcopy(generation_config or self.generation_config)
            kwargs = generation_config.update(**kwargs)
            generation_config.max_sentences = max_sentences
            generation_config.shortlist_size = shortlist_size
            generation_config.sentences_at_once = sentences_at_once
            bounds = (generation_config.max_length, generation_config.max_new_tokens)
            if bounds == (None, None) and max_sentences < math.inf:
                generation_config.max_new_tokens = int(max_sentences) * self.config.max_sentence_length
            mode = generation_config.get_generation_mode(kwargs.get("assistant_model")).value
            if mode not in ("greedy_search", "sample"):
                raise ValueError(f"`max_sentences` came with {mode}: it is for greedy search and sampling.")
        return super().generate(inputs, generation_config, *args, **kwargs)

    @wraps(GenerationMixin.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(self, *args, tokenizer=None, assistant_tokenizer=None, **kwargs):
        # Stop strings need a tokenizer, and transformers hands it on to where it is of no use.
        return super().prepare_inputs_for_generation(*args, **kwargs)

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    ):
        given = model_kwargs.get("past_key_values")
        super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )
        made = model_kwargs.get("past_key_values")
        if given is None and made is not None:
            # The backbone's cache may be any that transformers makes; ours goes around it.
            model_kwargs["past_key_values"] = SllmCache(self.config, made)

    def _sample(
        self,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config,
        synced_gpus=False,
        streamer=None,
        **model_kwargs,
    ):
        max_sentences = getattr(generation_config, "max_sentences", None)
        if generation_config.is_assistant and not synced_gpus:
            # A draft ends with its sentence: another would take a step of the backbone, perhaps for nothing.
            max_sentences = 1
        if max_sentences is None:
            return super()._sample(
                input_ids,
                logits_processor,
                stopping_criteria,
                generation_config,
                synced_gpus,
                streamer,
                **model_kwargs,
            )
        if model_kwargs.get("past_key_values") is None:
            raise ValueError("`use_cache` is False: the sentence loop (`max_sentences`) needs the cache.")
        if streamer is not None and len(input_ids) > 1:
            raise ValueError(f"`streamer` came with a batch of {len(input_ids)}: sentences stream for a single row.")
        if synced_gpus:
            raise ValueError(
                "`synced_gpus` is on: the sentence loop cannot wait for other processes. Leave `max_sentences` out."
            )

        if (getattr(generation_config, "sentences_at_once", None) or 1) > 1 and not generation_config.is_assistant:
            return write_in_parallel(
                self, input_ids, logits_processor, stopping_criteria, generation_config, streamer, model_kwargs
            )

        batch_size, prompt_length = input_ids.shape
        device = input_ids.device
        pad_token_id = 0 if generation_config._pad_token_tensor is None else int(generation_config._pad_token_tensor)
        written = _Rows(input_ids, pad_token_id)
        # What is decided of each row is in lists: tensors of so few values take longer.
        finished = [False] * batch_size
        waiting = [False] * batch_size  # has written the token that closes its sentence, which is not yet fed
        sentences = [0] * batch_size
        last, nobody = input_ids[:, -1], torch.zeros(batch_size, dtype=torch.bool, device=device)
        sentence_start = prompt_length  # of the sentence being streamed
        keep_scores = generation_config.return_dict_in_generate and generation_config.output_scores
        keep_logits = generation_config.return_dict_in_generate and generation_config.output_logits
        scores: list[torch.Tensor] = []
        raw_logits: list[torch.Tensor] = []

        outputs = self._prefill(input_ids, generation_config, model_kwargs, not generation_config.is_assistant)
        cache = outputs.past_key_values
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)
        del outputs
        shortlist_size = getattr(generation_config, "shortlist_size", None)
        head = None if shortlist_size is None else ShortlistedHead(self, shortlist_size)

        while True:
            writing = [not (done or waits) for done, waits in zip(finished, waiting, strict=True)]
            processed = written.by_length(writing, partial(_process, logits_processor, logits), logits)
            if generation_config.do_sample:
                drawn_from = _choose(writing, processed, torch.zeros_like(processed))  # of others nothing is known
                tokens = torch.multinomial(drawn_from.softmax(-1), 1).squeeze(1)
            else:
                tokens = processed.argmax(-1)
            if keep_scores:
                written.store(scores, processed, writing, prompt_length, -torch.inf)
            if keep_logits:
                written.store(raw_logits, logits, writing, prompt_length, 0.0)
            last = _choose(writing, tokens, last)
            written.append(writing, last)

            newest = (processed,) if keep_scores else None  # of those kept, the last is what criteria look at
            stop = written.by_length(writing, partial(stopping_criteria, scores=newest), nobody)
            closes = self.model.segmenter.closes(last, cache.open_length)
            for row, (stops, closed) in enumerate(torch.stack([stop, closes], 1).tolist()):
                if writing[row]:
                    sentences[row] += closed
                    waiting[row] = closed
                    finished[row] = stops or (closed and sentences[row] >= max_sentences)
            if streamer is not None and (waiting[0] or finished[0]):
                streamer.put(written.ids[0, sentence_start : written.lengths[0]].cpu())
                sentence_start = written.lengths[0]
            if all(finished):
                break

            feeding = [writes and not waiting[row] and not finished[row] for row, writes in enumerate(writing)]
            begins = not any(feeding)
            if begins:
                # Every row has closed its sentence: the backbone takes them all in at once.
                feeding = [waits and not finished[row] for row, waits in enumerate(waiting)]
                waiting = [False] * batch_size
            fed = torch.tensor(feeding, device=device)[:, None]
            with torch.inference_mode():  # cheaper than `no_grad`, which processors and criteria still have
                if begins:
                    step = {"input_ids": last[:, None], "attention_mask": fed.long(), "states_to_keep": 1}
                    states = self.model(**step, past_key_values=cache, use_cache=True).last_hidden_state
                else:
                    states = self.model.continue_sentences(last[:, None], fed, cache)
                states = states[:, -1]
                new = self.compute_logits(states) if head is None else head.logits(states, fed[:, 0] & begins)
            logits = _choose(feeding, new.to(device, torch.float32, copy=True), logits)

        if streamer is not None:
            streamer.end()
        if not generation_config.return_dict_in_generate:
            return written.ids
        cache.leave_inference_mode()
        return GenerateDecoderOnlyOutput(
            sequences=written.ids,
            scores=tuple(scores) if keep_scores else None,
            logits=tuple(raw_logits) if keep_logits else None,
            # In a batch, rows that waited have columns in it that the text has not.
            past_key_values=cache if batch_size == 1 else None,
        )


def _process(logits_processor: Callable, logits: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    return logits_processor(input_ids, logits.clone())


def _choose(rows: list[bool], values: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The values `(batch, …)` of the chosen rows, and the others of the others."""
    if all(rows):
        return values
    return torch.where(torch.tensor(rows, device=values.device).view(-1, *[1] * (values.dim() - 1)), values, others)


class _Rows:
    """Rows of token ids that grow at different times; padded on the right."""

    def __init__(self, input_ids: torch.Tensor, pad_token_id: int) -> None:
        self.ids = input_ids.long()  # as the token loop gives them, whatever the prompt has
        self.pad_token_id = pad_token_id
        self.lengths = [input_ids.shape[1]] * len(input_ids)

    def append(self, rows: list[bool], tokens: torch.Tensor) -> None:
        """To each of the chosen rows its token, of `(batch,)`."""
        places = {row: self.lengths[row] for row, writes in enumerate(rows) if writes}
        width = self.ids.shape[1]
        if width in places.values():
            self.ids = torch.cat([self.ids, torch.full_like(self.ids[:, :1], self.pad_token_id)], 1)
        self.ids[list(places), list(places.values())] = tokens[list(places)]
        self.lengths = [length + writes for length, writes in zip(self.lengths, rows, strict=True)]

    def by_length(self, rows: list[bool], function: Callable, default: torch.Tensor) -> torch.Tensor:
        """Calls a function of `(batch, length)` ids once for each length that the chosen rows have, so that each row
        is judged by exactly its own ids; returns what it says of the chosen rows, and the default for the others."""
        result = default
        for length in {length for length, writes in zip(self.lengths, rows, strict=True) if writes}:
            chosen = [writes and own == length for writes, own in zip(rows, self.lengths, strict=True)]
            result = _choose(chosen, function(self.ids[:, :length]), result)
        return result

    def store(self, steps: list, values: torch.Tensor, rows: list[bool], prompt_length: int, empty: float) -> None:
        """Puts the chosen rows' values into the step that each row is at, as the token loop would."""
        for row, writes in enumerate(rows):
            if writes:
                step = self.lengths[row] - prompt_length
                if step == len(steps):
                    steps.append(torch.full_like(values, empty))
                steps[step][row] = values[row]


__all__ = ["SllmGenerationMixin"]
