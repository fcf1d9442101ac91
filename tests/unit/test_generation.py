"""Generation: every way of writing gives the text that the logits say."""

import copy
import math

import pytest
import torch
from models import BACKBONES, option_model, padded, random_ids, tiny_backbone, tiny_sllm
from transformers import LogitsProcessor, StoppingCriteria, TextStreamer
from transformers.generation.streamers import BaseStreamer

from hf_sllm import SllmForCausalLM
from hf_sllm.data import train_tokenizer

GREEDY = {"do_sample": False, "max_new_tokens": 40}
OPTIONS = ["default", "sentence_alone", "short_context", "clauses", "memory", "flow", "paper"]


def greedy_by_hand(model, token_ids, steps: int) -> torch.Tensor:
    """Without a cache: the whole text again for each token."""
    for _ in range(steps):
        with torch.no_grad():
            token = model(token_ids).logits[:, -1].argmax(-1)
        token_ids = torch.cat([token_ids, token[:, None]], 1)
        if (token == model.config.eos_token_id).all():
            break
    return token_ids


@pytest.mark.parametrize("max_sentences", [None, math.inf])
@pytest.mark.parametrize("option", OPTIONS)
def test_both_loops_write_what_the_uncached_model_says(option, max_sentences):
    model, prompt = option_model(option), random_ids(1, 12)
    written = model.generate(prompt, max_sentences=max_sentences, **GREEDY)
    assert torch.equal(written, greedy_by_hand(model, prompt, 40))


# Both sides for each way to lay out a stream, with a context and without; what else an option changes knows no side.
@pytest.mark.parametrize(
    "option, side",
    [
        ("default", "left"),
        ("default", "right"),
        ("sentence_alone", "left"),
        ("sentence_alone", "right"),
        ("short_context", "left"),
        ("clauses", "right"),
        ("paper", "left"),
    ],
)
def test_the_sentence_loop_equals_the_token_loop_in_a_batch_and_each_row_alone(option, side):
    """Rows close their sentences at different times; one prompt ends in the middle of a sentence, one at its end."""
    model = option_model(option)
    rows = [random_ids(1, length, seed=length)[0] for length in (17, 4, 11)]
    rows[1][-1] = model.config.boundary_token_ids[0]
    prompt, mask = padded(rows, side)
    by_token = model.generate(prompt, attention_mask=mask, **GREEDY)
    by_sentence = model.generate(prompt, attention_mask=mask, max_sentences=math.inf, **GREEDY)
    assert torch.equal(by_token, by_sentence)
    for row, together in zip(rows, by_token, strict=True):
        alone = model.generate(row[None], **GREEDY)[0, len(row) :]
        assert torch.equal(together[prompt.shape[1] :][: len(alone)], alone)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_any_backbone_writes(backbone):
    model, prompt = tiny_sllm(backbone), random_ids(1, 12)
    written = model.generate(prompt, max_sentences=math.inf, **GREEDY)
    assert torch.equal(written, greedy_by_hand(model, prompt, 40))


def closed_sentences(model, token_ids) -> list[bool]:
    return model.model.segmenter.layout(token_ids, torch.ones_like(token_ids).bool()).token_closes.tolist()


@pytest.mark.parametrize("count", [1, 3])
def test_max_sentences_ends_with_the_last_sentence(count):
    model, prompt = tiny_sllm(seed=3), random_ids(1, 12)
    prompt[0, -1] = 20  # the prompt leaves a sentence open: it is the first
    torch.manual_seed(0)
    # Without the end of text, which would end the last sentence too.
    written = model.generate(prompt, max_sentences=count, do_sample=True, max_new_tokens=200, suppress_tokens=[2])
    closes = closed_sentences(model, written)
    assert closes[-1] and sum(closes[12:]) == count


class Recorder(BaseStreamer):
    def __init__(self):
        self.pieces, self.ended = [], False

    def put(self, value):
        self.pieces.append(value.flatten().tolist())

    def end(self):
        self.ended = True


def test_a_streamer_receives_whole_sentences_that_make_up_the_text():
    model, prompt, recorder = tiny_sllm(), random_ids(1, 12), Recorder()
    written = model.generate(prompt, max_sentences=4, streamer=recorder, **GREEDY)
    assert recorder.ended and sum(recorder.pieces, []) == written[0].tolist()
    closes, position = closed_sentences(model, written), 0
    for piece in recorder.pieces[1:]:
        position = position or len(recorder.pieces[0])
        position += len(piece)
        assert closes[position - 1] and sum(closes[position - len(piece) : position]) == 1


def test_the_token_loop_streams_too(capsys):
    class Characters:
        def decode(self, token_ids, **kwargs):
            return "".join(chr(97 + int(token) % 26) for token in token_ids)

    model, prompt = tiny_sllm(), random_ids(1, 5)
    written = model.generate(prompt, streamer=TextStreamer(Characters()), **GREEDY)
    assert capsys.readouterr().out.strip() == Characters().decode(written[0])


@pytest.mark.parametrize("max_sentences", [None, math.inf])
def test_sampling_is_repeatable_and_follows_its_options(max_sentences):
    model, prompt = tiny_sllm(), random_ids(2, 9)
    options = {"do_sample": True, "max_new_tokens": 20, "top_k": 5, "top_p": 0.9, "temperature": 0.8}
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(model.generate(prompt, max_sentences=max_sentences, **options))
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])


class Forbid(LogitsProcessor):
    """Also shows that each row is judged by its own ids: it forbids what the row's last token plus one is."""

    def __call__(self, input_ids, scores):
        return scores.scatter(1, (input_ids[:, -1:] + 1).clamp(max=scores.shape[1] - 1), -torch.inf)


class StopAfter(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids[:, -1] % 11 == 4) & (input_ids.shape[1] > 20)


def test_processors_and_criteria_see_the_same_in_both_loops():
    model = tiny_sllm()
    prompt, mask = padded([random_ids(1, length, seed=length)[0] for length in (17, 4, 11)], "left")
    options = {
        **GREEDY,
        "attention_mask": mask,
        "logits_processor": [Forbid()],
        "stopping_criteria": [StopAfter()],
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 5,
        "bad_words_ids": [[30], [31, 32]],
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
    }
    by_token = model.generate(prompt, **options)
    by_sentence = model.generate(prompt, max_sentences=math.inf, **options)
    assert torch.equal(by_token.sequences, by_sentence.sequences)
    written = by_token.sequences[:, prompt.shape[1] :] != 0
    assert len(by_token.scores) == len(by_sentence.scores)
    for name in ("scores", "logits"):
        for step, (one, other) in enumerate(zip(by_token[name], by_sentence[name], strict=True)):
            torch.testing.assert_close(one[written[:, step]], other[written[:, step]], rtol=1e-5, atol=1e-5)


def test_beam_search_finds_what_an_exhaustive_search_finds():
    """With as many beams as tokens, two steps of beam search are exhaustive."""
    model, prompt = tiny_sllm(), random_ids(1, 8)
    vocab_size = model.config.vocab_size
    found = model.generate(
        prompt, num_beams=vocab_size, max_new_tokens=2, min_new_tokens=2, do_sample=False, length_penalty=0.0
    )
    with torch.no_grad():
        first = model(prompt).logits[0, -1].log_softmax(-1)
        extended = torch.cat([prompt.expand(vocab_size, -1), torch.arange(vocab_size)[:, None]], 1)
        total = first[:, None] + model(extended).logits[:, -1].log_softmax(-1)
    total[model.config.eos_token_id], total[:, model.config.eos_token_id] = -torch.inf, -torch.inf
    assert found[0, -2:].tolist() == list(divmod(total.argmax().item(), vocab_size))


def test_beam_search_with_the_cache_equals_beam_search_without():
    model = tiny_sllm()
    prompt, mask = padded([random_ids(1, length, seed=length)[0] for length in (17, 4)], "left")
    options = {"attention_mask": mask, "num_beams": 3, "max_new_tokens": 25, "do_sample": False}
    assert torch.equal(model.generate(prompt, **options), model.generate(prompt, use_cache=False, **options))


@pytest.mark.parametrize("option", ["default", "sentence_alone", "paper"])
def test_prompt_lookup_changes_nothing(option):
    """Drafts are cut back by `crop`, across sentences too."""
    model = option_model(option)
    prompt = random_ids(1, 12).repeat(1, 3)
    plain = model.generate(prompt, **GREEDY)
    assert torch.equal(model.generate(prompt, prompt_lookup_num_tokens=9, **GREEDY), plain)


def test_an_sllm_drafts_for_its_own_backbone():
    backbone = tiny_backbone()
    prompt = random_ids(1, 12)
    plain = backbone.generate(prompt, **GREEDY)
    sllm = tiny_sllm()
    assert torch.equal(backbone.generate(prompt, assistant_model=sllm, **GREEDY), plain)


def test_a_backbone_drafts_for_its_sllm():
    model, prompt = tiny_sllm(), random_ids(1, 12)
    plain = model.generate(prompt, **GREEDY)
    assert torch.equal(model.generate(prompt, assistant_model=tiny_backbone(), **GREEDY), plain)


def test_a_text_goes_on_from_its_cache():
    model, prompt = tiny_sllm(), random_ids(1, 12)
    whole = model.generate(prompt, **GREEDY)
    half = model.generate(prompt, do_sample=False, max_new_tokens=20, return_dict_in_generate=True)
    rest = model.generate(half.sequences, past_key_values=half.past_key_values, do_sample=False, max_new_tokens=20)
    assert torch.equal(rest, whole)


def test_a_prompt_may_be_read_in_chunks():
    model, prompt = tiny_sllm(), random_ids(2, 33)
    assert torch.equal(model.generate(prompt, prefill_chunk_size=7, **GREEDY), model.generate(prompt, **GREEDY))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_prompts_may_be_read_in_chunks(side):
    model = tiny_sllm()
    prompt, mask = padded([random_ids(1, length, seed=length)[0] for length in (17, 4, 11)], side)
    plain = model.generate(prompt, attention_mask=mask, **GREEDY)
    assert torch.equal(model.generate(prompt, attention_mask=mask, prefill_chunk_size=5, **GREEDY), plain)


def test_the_sentence_loop_runs_the_backbone_once_per_sentence_for_the_whole_batch():
    model, prompt, calls = tiny_sllm(), random_ids(4, 12), []
    model.model.language_model.register_forward_hook(lambda *_: calls.append(1))
    options = {"do_sample": False, "max_new_tokens": 200, "suppress_tokens": [2]}
    model.generate(prompt, max_sentences=5, **options)
    assert len(calls) == 5  # the prompt, then each sentence but the last


def test_max_sentences_alone_bounds_the_length():
    model, prompt = tiny_sllm(), random_ids(1, 12)
    model.generation_config.max_length = model.generation_config.max_new_tokens = None
    written = model.generate(prompt, max_sentences=12, do_sample=False, suppress_tokens=[2])
    assert sum(closed_sentences(model, written)[12:]) == 12 and written.shape[1] - 12 > 20


def test_the_sentence_loop_returns_a_cache_that_fits_the_text_or_none():
    model = tiny_sllm()
    options = {"max_sentences": 3, "do_sample": False, "max_new_tokens": 30, "return_dict_in_generate": True}
    alone = model.generate(random_ids(1, 12), **options)
    assert alone.past_key_values.get_seq_length() == alone.sequences.shape[1] - 1
    assert model.generate(random_ids(2, 12), **options).past_key_values is None


@pytest.mark.parametrize("option, cache_implementation", [("default", None), ("default", "static"), ("paper", None)])
def test_what_the_sentence_loop_returns_serves_other_loops_and_training(option, cache_implementation):
    """It runs the model in inference mode, whose tensors can neither be changed nor differentiated elsewhere."""
    model, prompt = option_model(option), random_ids(1, 12)
    options = {"return_dict_in_generate": True, "cache_implementation": cache_implementation, "do_sample": False}
    whole = model.generate(prompt, **GREEDY)
    half = model.generate(
        prompt, max_sentences=math.inf, max_new_tokens=20, output_scores=True, output_logits=True, **options
    )
    assert not any(values.is_inference() for values in (half.sequences, *half.scores, *half.logits))
    for max_sentences in (math.inf, None):
        cache = copy.deepcopy(half.past_key_values)
        rest = model.generate(
            half.sequences, past_key_values=cache, max_sentences=max_sentences, do_sample=False, max_new_tokens=20
        )
        assert torch.equal(rest, whole)
    model(half.sequences[:, -1:], past_key_values=half.past_key_values).logits.sum().backward()
    model(half.sequences, labels=half.sequences).loss.backward()


@pytest.mark.parametrize("max_sentences", [None, math.inf])
def test_a_prompt_may_have_other_integers(max_sentences):
    model, prompt = tiny_sllm(), random_ids(2, 12)
    expected = model.generate(prompt, max_sentences=max_sentences, **GREEDY)
    assert torch.equal(model.generate(prompt.int(), max_sentences=max_sentences, **GREEDY), expected)


def test_rows_that_wait_are_not_drawn_from():
    """What a processor would have made of them is not known: their logits may be no numbers."""

    def spoil(module, args, logits):
        logits[1, ..., 3], logits[1, ..., 4] = math.inf, math.nan

    options = {"do_sample": True, "max_new_tokens": 40, "remove_invalid_values": True, "max_sentences": math.inf}
    model = tiny_sllm()
    model.lm_head.register_forward_hook(spoil)
    assert model.generate(random_ids(2, 12), **options).shape[1] > 12


def test_several_texts_for_one_prompt():
    model, prompt = tiny_sllm(), random_ids(1, 9)
    texts = model.generate(prompt, do_sample=True, num_return_sequences=4, max_new_tokens=12, max_sentences=math.inf)
    assert len({tuple(text.tolist()) for text in texts}) > 1 and (texts[:, :9] == prompt).all()


@pytest.mark.parametrize("max_sentences", [None, 5])
def test_stop_strings_stop(max_sentences):
    tokenizer = train_tokenizer(["The owl said no. The mice ran!"], 280)
    backbone = tiny_backbone(vocab_size=len(tokenizer))
    model = SllmForCausalLM.from_backbone(backbone, tokenizer, encoder_layers=1, decoder_layers=1).eval()
    token_ids = tokenizer("The owl", return_tensors="pt")["input_ids"]
    kwargs = {"do_sample": False, "max_new_tokens": 20, "max_sentences": max_sentences, "pad_token_id": 0}
    written = model.generate(token_ids, **kwargs)[0]
    stop = tokenizer.decode(written[-8])  # any token: only as a string does it stop
    stopped = model.generate(token_ids, stop_strings=[stop], tokenizer=tokenizer, **kwargs)[0]
    assert len(token_ids[0]) < len(stopped) < len(written)
    assert torch.equal(stopped, written[: len(stopped)]) and stop in tokenizer.decode(stopped[-1:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_both_loops_return_the_same_beside_the_text(side):
    model = tiny_sllm()
    rows = [random_ids(1, length, seed=length)[0] for length in (17, 4)]
    prompt, mask = padded(rows, side)
    wanted = {"output_hidden_states": True, "output_attentions": True, "output_logits": True, "output_scores": True}
    given = {**GREEDY, **wanted, "attention_mask": mask, "return_dict_in_generate": True}
    by_token = model.generate(prompt, **given)
    by_sentence = model.generate(prompt, max_sentences=math.inf, **given)
    assert torch.equal(by_sentence.sequences, by_token.sequences)
    assert by_sentence.attentions == by_token.attentions
    assert len(by_sentence.hidden_states) == len(by_token.hidden_states) > 10
    ends = (by_token.sequences[:, prompt.shape[1] :] == model.config.eos_token_id).long().cumsum(1)
    for step, (ours, theirs) in enumerate(zip(by_sentence.hidden_states, by_token.hidden_states, strict=True)):
        writes = torch.ones(2, dtype=torch.bool) if step == 0 else ends[:, step - 1] == 0
        assert len(ours) == len(theirs) == 3
        for own, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(own[writes], other[writes], rtol=1e-4, atol=1e-4)
        logits = model.compute_logits(ours[-1][:, -1])
        torch.testing.assert_close(logits[writes], by_sentence.logits[step][writes], rtol=1e-4, atol=1e-4)


def test_sentences_written_side_by_side_have_no_states_of_the_text():
    model = tiny_sllm(next_latent_weight=1.0)
    wanted = {"return_dict_in_generate": True, "output_hidden_states": True}
    with pytest.raises(ValueError, match="`output_hidden_states` is True with `sentences_at_once`.*model\\(sequences"):
        model.generate(random_ids(1, 9), max_sentences=4, sentences_at_once=2, **wanted)


def test_what_the_generation_config_says_is_as_if_it_was_given_and_is_saved(tmp_path):
    model, prompt = tiny_sllm(boundary_token_ids=[60], max_sentence_length=15), random_ids(1, 12)
    expected = model.generate(prompt, max_sentences=6, do_sample=False)
    assert expected.shape[1] > 12 + 20  # longer than where transformers ends a text of which it knows no length
    model.generation_config.max_sentences = 6
    assert torch.equal(model.generate(prompt, do_sample=False), expected)
    with pytest.raises(ValueError, match="`max_sentences` came with beam_search.*generation config"):
        model.generate(prompt, num_beams=2)
    model.save_pretrained(tmp_path)
    assert torch.equal(SllmForCausalLM.from_pretrained(tmp_path).generate(prompt, do_sample=False), expected)
    model.generation_config.max_sentences = "6"
    with pytest.raises(ValueError, match="`max_sentences` is '6'"):
        model.generate(prompt)
