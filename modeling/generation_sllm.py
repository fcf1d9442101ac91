"""Generation: transformers' own loops, which go token by token, and a loop that goes sentence by sentence.

The sentence loop writes the same text. Rows of a batch that have closed their sentence wait for the others, so that
the backbone runs once per sentence for the whole batch, not each time some row closes one.
"""

import copy
import math
from functools import wraps

import torch
from transformers import GenerationConfig, GenerationMixin

from .generation_ahead import write_in_parallel
from .generation_rows import Rows, choose
from .latent_predictor import SETTINGS, LatentSampling
from .stream_cache import SllmCache
from .token_shortlist import ShortlistedHead, fit_directions
from .validation_inputs import check_generation, check_latent_options, check_sentence_loop


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
        latent_steps: int | None = None,
        latent_guidance_scale: float | None = None,
        latent_noise_scale: float | None = None,
        latent_seed: int | None = None,
        **kwargs,
    ):
        """As `GenerationMixin.generate`, with some options more, each by default as the generation config has it.
        Those called `latent_…` are for a model whose `latent_predictor` samples the latents of each sentence;
        `num_return_sequences` then gives different futures.

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
            latent_steps, latent_guidance_scale, latent_noise_scale: See `LatentSampling`; by default the config's.
            latent_seed: Of the latents' noise, 0 by default where tokens are not sampled and else drawn. The futures
                of a text have this seed and those after it, in each row of a batch and with any prompt.

        Raises:
            ValueError: If `max_sentences` is below 1, or comes with another decoding method, or without a cache; or if
                another option comes without what it needs.
        """
        given = {
            "max_sentences": max_sentences,
            "shortlist_size": shortlist_size,
            "sentences_at_once": sentences_at_once,
            "latent_steps": latent_steps,
            "latent_guidance_scale": latent_guidance_scale,
            "latent_noise_scale": latent_noise_scale,
            "latent_seed": latent_seed,
        }
        for configured in (generation_config, self.generation_config):
            given = {n: getattr(configured, n, None) if value is None else value for n, value in given.items()}
        max_sentences = given["max_sentences"]
        options = {name: given[name] for name in ("shortlist_size", "sentences_at_once")}
        check_generation(self.config, max_sentences, options, self.shortlist_fit is not None, kwargs)
        check_latent_options(self.config, given)
        if any(value is not None for value in given.values()):
            generation_config = copy.deepcopy(generation_config or self.generation_config)
            kwargs = generation_config.update(**kwargs)
            for name, value in given.items():
                setattr(generation_config, name, value)
        if max_sentences is not None:
            bounds = (generation_config.max_length, generation_config.max_new_tokens)
            if bounds == (None, None) and max_sentences < math.inf:
                generation_config.max_new_tokens = int(max_sentences) * self.config.max_sentence_length
            mode = generation_config.get_generation_mode(kwargs.get("assistant_model")).value
            if mode not in ("greedy_search", "sample"):
                raise ValueError(
                    f"`max_sentences` came with {mode}: it is for greedy search and sampling. Leave it out, of the "
                    "generation config too."
                )
        return super().generate(inputs, generation_config, *args, **kwargs)

    def generate_batch(self, *args, **kwargs):
        """Refused: a paged cache holds no sentences, and transformers would give back empty texts.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "`generate_batch` keeps tokens in a paged cache, which holds no sentences: call `generate` with a padded "
            "batch. In TRL, set `use_transformers_continuous_batching=False`."
        )

    @wraps(GenerationMixin.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(self, *args, tokenizer=None, assistant_tokenizer=None, **kwargs):
        # Stop strings need a tokenizer, and transformers hands it on to where it is of no use.
        return super().prepare_inputs_for_generation(*args, **kwargs)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, mode, batch_size, *args):
        given = model_kwargs.get("past_key_values")
        super()._prepare_cache_for_generation(generation_config, model_kwargs, mode, batch_size, *args)
        made = model_kwargs.get("past_key_values")
        if given is None and made is not None:
            # The backbone's cache may be any that transformers makes; ours goes around it.
            model_kwargs["past_key_values"] = SllmCache(self.config, made)
        if not self.config.has_linear_predictor and isinstance(model_kwargs.get("past_key_values"), SllmCache):
            sample_latents_by(generation_config, model_kwargs["past_key_values"], batch_size, self.device)

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
            arguments = (input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer)
            return super()._sample(*arguments, **model_kwargs)
        check_sentence_loop(input_ids, model_kwargs.get("past_key_values"), streamer, synced_gpus)
        if (getattr(generation_config, "sentences_at_once", None) or 1) > 1 and not generation_config.is_assistant:
            return write_in_parallel(
                self, input_ids, logits_processor, stopping_criteria, generation_config, streamer, model_kwargs
            )

        outputs = self._prefill(input_ids, generation_config, model_kwargs, not generation_config.is_assistant)
        cache, logits = outputs.past_key_values, outputs.logits[:, -1].to(copy=True, dtype=torch.float32)
        rows, streamed = Rows(input_ids, generation_config), input_ids.shape[1]
        layers = outputs.hidden_states if rows.keeps_layers else None  # from the last of them the logits come
        del outputs
        shortlist_size = getattr(generation_config, "shortlist_size", None)
        head = None if shortlist_size is None else ShortlistedHead(self, shortlist_size)
        while True:
            rows.write(logits, logits_processor, layers)
            rows.note(self.model.segmenter.closes(rows.last, cache.open_length), stopping_criteria, max_sentences)
            if streamer is not None and (rows.waiting[0] or rows.finished[0]):
                streamer.put(rows.ids[0, streamed : rows.lengths[0]].cpu())
                streamed = rows.lengths[0]
            if all(rows.finished):
                break
            feeding, closing = rows.to_feed()
            new, *new_layers = self._feed(rows.last, feeding, closing, cache, head, layers is not None)
            logits = choose(feeding, new.to(logits.device, torch.float32, copy=True), logits)
            if layers is not None:
                layers = [choose(feeding, own.clone(), last) for own, last in zip(new_layers, layers, strict=True)]

        if streamer is not None:
            streamer.end()
        return rows.output(cache)

    @torch.inference_mode()  # cheaper than `no_grad`, which processors and criteria still have
    def _feed(
        self,
        token_ids: torch.Tensor,
        rows: list[bool],
        closing: bool,
        cache: SllmCache,
        head: ShortlistedHead | None,
        layers_too: bool = False,
    ) -> tuple[torch.Tensor, ...]:
        """Logits `(batch, vocab)` after one token more, of `(batch,)`, of the chosen rows, where it closes its
        sentence or, in every row, does not. If they are wanted, the hidden states `(batch, 1, width)` too."""
        fed, layers = torch.tensor(rows, device=token_ids.device)[:, None], ()
        if closing or layers_too:
            step = {"input_ids": token_ids[:, None], "attention_mask": fed.long(), "states_to_keep": 1}
            output = self.model(**step, past_key_values=cache, use_cache=True, output_hidden_states=layers_too)
            states, layers = output.last_hidden_state, output.hidden_states or ()
        else:
            states = self.model.continue_sentences(token_ids[:, None], fed, cache)
        states = states[:, -1]
        logits = self.compute_logits(states) if head is None else head.logits(states, fed[:, 0] & closing)
        return logits, *layers


def sample_latents_by(
    generation_config: GenerationConfig, cache: SllmCache, batch_size: int, device: torch.device
) -> None:
    """Tells a cache how latents are sampled, and the seeds of its rows: those of a batch of texts, each of which
    stands there once for each future, or once for each beam. A cache that goes on keeps the seeds it has."""
    told = {name: getattr(generation_config, f"latent_{name}", None) for name in SETTINGS}
    cache.latent_sampling = LatentSampling.of(cache.config.latent_predictor, **told)
    seed = getattr(generation_config, "latent_seed", None)
    if seed is None and cache.latent_seeds is not None:
        return
    if seed is None:
        seed = int(torch.randint(2**31, ())) if generation_config.do_sample else 0
    beams, futures = generation_config.num_beams, generation_config.num_return_sequences
    of_text = [seed] * beams if beams > 1 else list(range(seed, seed + futures))
    cache.latent_seeds = torch.tensor(of_text * batch_size, device=device)


__all__ = ["SllmGenerationMixin"]
