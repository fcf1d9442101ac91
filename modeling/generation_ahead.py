"""Several sentences at once: the backbone reads on what it expects to read, and the decoder writes the sentences so
predicted side by side.

From the backbone's state before a sentence, the next-latent head tells what the backbone will read of that sentence.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from transformers.generation.utils import GenerateDecoderOnlyOutput

from .generation_rows import Rows
from .sentence_decoder import SideBySide
from .stream_cache import SllmCache
from .token_shortlist import ShortlistedHead


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
    numbers = cache.num_sentences[:, None] + torch.arange(1, count + 1, device=state.device)
    return body.latents_from(torch.stack(states, 1) if states else state[:, None][:, :0], numbers)


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
    if generation_config.return_dict_in_generate and generation_config.output_hidden_states:
        raise ValueError(
            "`output_hidden_states` is True with `sentences_at_once`: sentences that are written side by side have "
            "other states than the text. Leave one of them out, or read the text written with "
            "`model(sequences, output_hidden_states=True)`."
        )
    cache.activate_past_recording()  # what is read ahead is forgotten again
    if not cache.is_empty and cache.sentence_state is None:
        cache.must_replay = True
    cache = model._prefill(input_ids, generation_config, model_kwargs).past_key_values
    count, most = generation_config.sentences_at_once, generation_config.max_sentences
    shortlist_size = getattr(generation_config, "shortlist_size", None)
    text, sentences, stopped = Rows(input_ids, generation_config), 0, False
    while True:
        latents = predict_ahead(model, cache, int(min(count, most - sentences)) - 1)[0]
        rows = Rows(text.ids.expand(1 + len(latents), -1), generation_config)
        head = None if shortlist_size is None else ShortlistedHead(model, shortlist_size)
        _write_sentences(model, cache, latents, rows, logits_processor, head)
        for row, length in enumerate(rows.lengths):
            begin = text.ids.shape[1]
            text.ids = torch.cat([text.ids, rows.ids[row : row + 1, rows.prompt_length : length]], 1)
            for end in range(begin + 1, text.ids.shape[1] + 1):
                if stopping_criteria(text.ids[:, :end], None).all():
                    stopped, text.ids = True, text.ids[:, :end]
                    break
            for kept, steps in ((text.scores, rows.scores), (text.logits, rows.logits)):
                if kept is not None:
                    kept += [step[row : row + 1] for step in steps[: text.ids.shape[1] - begin]]
            if streamer is not None:
                streamer.put(text.ids[0, begin:].cpu())
            sentences += 1
            if stopped:
                break
        if stopped or sentences >= most:
            break
        model.model(text.ids[:, cache.get_seq_length() :], past_key_values=cache, use_cache=True, states_to_keep=1)

    if streamer is not None:
        streamer.end()
    return text.output(cache)


def _write_sentences(
    model: Any,
    cache: SllmCache,
    latents: torch.Tensor,
    rows: Rows,
    logits_processor: Callable,
    head: ShortlistedHead | None,
) -> None:
    """Writes in the first row the rest of the open sentence, in the others a sentence from each of the latents
    `(S, num_latents, latent_size)`."""
    decoder, states = SideBySide(model.model.sentence_decoder, latents, cache), cache.last_state
    memory = model.model.memory
    said = None if memory is None else model.model.said_before(cache)
    if len(latents):
        states = torch.cat([states, decoder.begin()[1:].to(states.dtype)])
    size = F.pad(cache.open_length, (0, len(latents)))
    begins, is_open = size == 0, size >= 0
    while True:
        logits = model.compute_logits(states) if head is None else head.logits(states, begins)
        rows.write(logits.float(), logits_processor)
        is_open = is_open & ~model.model.segmenter.closes(rows.last, size)
        rows.waiting = (~is_open).tolist()
        if all(rows.waiting):
            break
        size, begins = size + 1, torch.zeros_like(begins)
        embeds = model.get_input_embeddings()(rows.last)
        states = decoder.extend(embeds, is_open)
        if memory is not None:
            said = said + embeds[:1].float()
            own = memory(states[:1, None], said[:, None], cache.num_sentences[:, None], *cache.written)
            states = torch.cat([own[:, 0], states[1:]])
