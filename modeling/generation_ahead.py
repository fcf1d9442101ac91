"""Several sentences at once: the backbone reads on what it expects to read, and the decoder writes the sentences so
predicted side by side.

From the backbone's state before a sentence, the next-latent head tells what the backbone will read of that sentence.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers.generation.utils import GenerateDecoderOnlyOutput

from .generation_rows import Rows, generated
from .stream_cache import SllmCache
from .stream_layout import Stream
from .token_shortlist import ShortlistedHead
from .validation_inputs import check_length


def predict_ahead(model: Any, cache: SllmCache, count: int) -> torch.Tensor:
    """Latents `(batch, count, num_latents, latent_size)` of the sentences after the open one, of which nothing is
    known: the backbone reads what it expects to read. The cache is then as it was.

    Args:
        model (`SllmForCausalLM`): Has a `next_latent_head`.
        cache: Holds the sentences before, and the backbone's state after them.
    """
    body, state, states = model.model, cache.sentence_state, []
    for step in range(1, count + 1):
        embeds = model.next_latent_head(state.to(next(model.next_latent_head.parameters()).dtype))
        state = body.read_sentences(embeds[:, None], (cache.num_sentences + step)[:, None], cache)[:, -1]
        states.append(state)
    cache.drop_sentences(count)
    return body.latents_from(torch.stack(states, 1) if states else state[:, None][:, :0])


def write_in_parallel(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Callable,
    stopping_criteria: Callable,
    generation_config: Any,
    streamer: Any,
    model_kwargs: dict[str, Any],
) -> torch.Tensor | GenerateDecoderOnlyOutput:
    """Writes `generation_config.sentences_at_once` sentences at a time, for a single row; the arguments are those of
    `GenerationMixin._sample`.

    The first of them goes on where the text ends. The others are written from predicted latents alone: their decoder
    sees nothing before them. Then they are laid end to end and read as any text, and what the backbone makes of that
    is where the next ones begin.

    To a logits processor each sentence is the whole text up to now and what there is of this sentence; it does not see
    those that are written beside it. Stopping criteria are asked when the sentences lie end to end, after each token;
    what follows the one that stops is dropped.
    """
    cache: SllmCache = model_kwargs["past_key_values"]
    if len(input_ids) > 1:
        raise ValueError(
            f"`sentences_at_once` came with a batch of {len(input_ids)}: it is for a single row. Write the rows one "
            "by one, or leave it out."
        )
    cache.activate_past_recording()  # what is read ahead is forgotten again
    if not cache.is_empty and cache.sentence_state is None:
        cache.must_replay = True
    cache = model._prefill(input_ids, generation_config, model_kwargs).past_key_values
    count, most = generation_config.sentences_at_once, generation_config.max_sentences
    count, most = generation_config.sentences_at_once, generation_config.max_sentences
    text, sentences, stopped = input_ids, 0, False
    scores: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []
    while True:
        latents = predict_ahead(model, cache, int(min(count, most - sentences)) - 1)[0]
        rows = _write_sentences(model, cache, latents, text, logits_processor, generation_config)
        for row, length in enumerate(rows.lengths):
            begin = text.shape[1]
            text = torch.cat([text, rows.ids[row : row + 1, rows.prompt_length : length]], 1)
            for kept, steps in ((scores, rows.scores), (logits, rows.logits)):
                kept += [step[row : row + 1] for step in (steps or [])[: length - rows.prompt_length]]
            for end in range(begin + 1, text.shape[1] + 1):
                if stopping_criteria(text[:, :end], None).all():
                    stopped, text = True, text[:, :end]
                    break
            if streamer is not None:
                streamer.put(text[0, begin:].cpu())
            sentences += 1
            if stopped:
                break
        if stopped or sentences >= most:
            break
        model.model(text[:, cache.get_seq_length() :], past_key_values=cache, use_cache=True, states_to_keep=1)

    if streamer is not None:
        streamer.end()
    written = text.shape[1] - input_ids.shape[1]
    kept_scores = scores[:written] if generation_config.output_scores else None
    kept_logits = logits[:written] if generation_config.output_logits else None
    return generated(text, kept_scores, kept_logits, cache, generation_config)


def _write_sentences(
    model: Any,
    cache: SllmCache,
    latents: torch.Tensor,
    text: torch.Tensor,
    logits_processor: Callable,
    generation_config: Any,
) -> Rows:
    """The text with the rest of the open sentence, and with a sentence from each of the latents `(S, num_latents,
    latent_size)`."""
    shortlist_size = getattr(generation_config, "shortlist_size", None)
    head = None if shortlist_size is None else ShortlistedHead(model, shortlist_size)
    decoder = _SideBySide(model, cache, latents)
    states = decoder.begin()
    rows = Rows(text.expand(len(states), -1), generation_config)
    size = torch.zeros(len(states), dtype=torch.long, device=text.device)
    size[:1] = cache.open_length
    begins, is_open = size == 0, size >= 0
    while True:
        logits = model.compute_logits(states) if head is None else head.logits(states, begins)
        rows.write(logits.float(), logits_processor)
        is_open = is_open & ~model.model.segmenter.closes(rows.last, size)
        rows.waiting = (~is_open).tolist()
        if all(rows.waiting):
            return rows
        size, begins = size + 1, torch.zeros_like(begins)
        states = decoder.extend(rows.last, is_open)


class _SideBySide:
    """The decoder, writing the open sentence in its first row and a sentence from each of the latents
    `(S, num_latents, latent_size)` in the others, before which it sees nothing."""

    def __init__(self, model: Any, cache: SllmCache, latents: torch.Tensor):
        self.model, self.decoder, self.config = model, model.model.sentence_decoder, model.config
        self.latents = latents
        self.first_state, self.written = cache.last_state, cache.written
        device, others = latents.device, torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        # Where each row's next token stands. Before the others is their prefix, at position 0, as in `decode_latents`.
        self.index = torch.cat([cache.num_positions, others + self.config.prefix_length])
        restart = self.config.decoder_context_length == 0
        self.position_ids = torch.cat([(cache.open_length if restart else cache.num_tokens) + 1, others + 1])
        self.sentence = cache.num_sentences + torch.arange(len(latents) + 1, device=device)
        self.cache = _decoder_rows(cache, len(latents) + 1)
        self.attended: tuple[torch.Tensor, torch.Tensor] | None = None
        self.prefix = self.decoder.latent_prefix(latents.to(self.decoder.latent_prefix.weight.dtype))
        if self.config.conditioning == "cross_attention":
            states = torch.cat([cache.open_latents, self.prefix.to(cache.open_latents.dtype)])
            self.attended = states, self.sentence[:, None].expand(states.shape[:2])
            self.prefix = self.decoder.sentence_start(others[:, None])

    def begin(self) -> torch.Tensor:
        """States `(1 + S, width)` from which each row's first token is predicted."""
        if not len(self.latents):
            return self.first_state
        index = torch.arange(self.prefix.shape[1], device=self.index.device).repeat(len(self.index), 1)
        index[0] = -1  # the first row has its prefix
        prefix = torch.cat([torch.zeros_like(self.prefix[:1]), self.prefix])
        states = self._run(prefix, index, torch.zeros_like(index))
        return torch.cat([self.first_state, states[1:].to(self.first_state.dtype)])

    def extend(self, token_ids: torch.Tensor, is_open: torch.Tensor) -> torch.Tensor:
        """States `(1 + S, width)` after one token more of each row that is open, both `(1 + S,)`."""
        embeds = self.decoder.embed_projection(self.model.get_input_embeddings()(token_ids[:, None]))
        index, position_ids = self.index.masked_fill(~is_open, -1), self.position_ids.masked_fill(~is_open, 0)
        self.index, self.position_ids = self.index + 1, self.position_ids + 1
        return self._run(embeds, index[:, None], position_ids[:, None])

    def _run(self, embeds: torch.Tensor, index: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        stream = Stream(self.sentence[:, None].expand_as(index), index, position_ids, torch.zeros_like(index))
        check_length(position_ids, self.config.sentence_decoder_config, "sentence_decoder_config")
        states, _ = self.decoder.run(embeds, stream, self.config.decoder_context_length, self.cache, self.attended)
        states = self.decoder.output_projection(states[:, -1:])
        own = self.model.model.read_memory(states[:1], self.sentence[:1, None], self.written)
        return torch.cat([own, states[1:]]).squeeze(1)


def _decoder_rows(cache: SllmCache, count: int) -> SllmCache:
    """A cache for the decoder alone, of so many rows. What comes before is a hole in all rows but the first, which
    goes on where the text ends."""
    rows = SllmCache(cache.config)
    kept = (cache.decoder.slots.index[0] >= cache.first_needed()[0]).nonzero().squeeze(1)
    rows.decoder.slots = cache.decoder.slots.map(lambda values: values[:, kept].repeat(count, 1))
    rows.decoder.slots.index[1:] = -1
    for number, layer in enumerate(cache.decoder.layers):
        keys, values = (states[:, :, kept].expand(count, -1, -1, -1) for states in (layer.keys, layer.values))
        rows.decoder.update(keys, values, number)
    return rows
