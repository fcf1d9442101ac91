"""Several sentences at once: a head that costs the rest of the model nothing, and what is written with it."""

import copy
import math

import pytest
import torch
from models import BACKBONES, padded, random_ids, tiny_sllm
from models import OPTIONS as TINY_OPTIONS

from hf_sllm.modeling import generation_sllm
from hf_sllm.modeling.generation_ahead import predict_ahead
from hf_sllm.training.trainer import is_new_part


@pytest.fixture(scope="module")
def model():
    model = tiny_sllm(next_latent_weight=0.5)
    model.next_latent_head[-1].weight.data.normal_(std=0.3)  # else it says the same of each sentence
    return model


def trained_step(model, token_ids, **kwargs):
    """The terms of the loss and the gradients of one step of training."""
    model.train()
    model.zero_grad()
    torch.manual_seed(3)
    outputs = model(token_ids, labels=token_ids, **kwargs)
    outputs.loss.backward()
    model.eval()
    return outputs.losses, {name: parameter.grad for name, parameter in model.named_parameters()}


def test_the_head_costs_the_rest_of_the_model_nothing(model):
    bare = tiny_sllm()
    own = {f"next_latent_head.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    assert set(bare.load_state_dict(model.state_dict(), strict=False).unexpected_keys) == own
    token_ids = random_ids(2, 40)
    losses, gradients = trained_step(model, token_ids)
    bare_losses, bare_gradients = trained_step(bare, token_ids)
    assert losses.keys() - bare_losses.keys() == {"next_latent"}
    assert torch.equal(losses["next_sentence"], bare_losses["next_sentence"])
    assert gradients.keys() - bare_gradients.keys() == own
    assert all(gradients[name].abs().sum() > 0 and is_new_part(name) for name in own)
    for name, gradient in bare_gradients.items():
        assert torch.equal(gradients[name], gradient), name


def test_the_loss_is_the_error_of_what_the_backbone_reads_next(model):
    token_ids = random_ids(2, 40)
    labels = token_ids.masked_fill(torch.arange(40) < 7, -100)
    model.train()
    outputs = model(token_ids, labels=labels)
    model.eval()
    latents, mask = model.encode_sentences(token_ids)
    layout = model.model.segmenter.layout(token_ids, torch.ones_like(token_ids).bool())
    inputs = model.model.latent_input(latents.flatten(2))
    expected = 0.0
    for row in range(2):
        closed = layout.sentence_closed[layout.sentence_row == row]
        for rank in range(int(closed.sum())):
            start = model.model.start_latents.weight
            before = torch.cat([model.model.latent_input(start), inputs[row, :rank]])
            state = model.model.language_model(inputs_embeds=before[None]).last_hidden_state[0, -1]
            target = inputs[row, rank]
            error = (model.next_latent_head(state) - target).pow(2).mean() / target.var(correction=0)
            of_row = layout.token_row == row
            in_sentence = layout.sentence_rank[layout.token_sentence] == rank
            expected += error.item() * (labels[row] != -100)[(in_sentence & of_row)[of_row]].sum().item()
    assert outputs.losses["next_latent"].item() == pytest.approx(expected / 66, rel=1e-4)
    total = outputs.losses["next_sentence"] + 0.5 * outputs.losses["next_latent"]
    assert outputs.loss.item() == pytest.approx(total.item(), rel=1e-5)


def test_a_batch_that_closes_no_sentence_has_a_loss_of_zero(model):
    losses, gradients = trained_step(model, torch.full((2, 4), 30))
    assert losses["next_latent"].item() == 0.0
    assert all(gradient is not None for name, gradient in gradients.items() if "next_latent_head" in name)


GREEDY = {"do_sample": False, "max_sentences": math.inf, "max_new_tokens": 45, "pad_token_id": 0}
OPTIONS = ["default", "sentence_alone", "short_context", "one_latent", "clauses", "memory", "gpt2", "gemma3", "paper"]


def looking_ahead(option):
    """The tiny model with an option, with the paper's architecture or with another backbone, and the head."""
    if option == "paper":
        model = tiny_sllm(preset="paper", decoder_layers=1, next_latent_weight=0.5)
    elif option in BACKBONES:
        model = tiny_sllm(option, next_latent_weight=0.5)
    else:
        model = tiny_sllm(**TINY_OPTIONS[option], next_latent_weight=0.5)
    model.next_latent_head[-1].weight.data.normal_(std=0.3)
    return model


def sentence_ends(model, text):
    layout = model.model.segmenter.layout(text, torch.ones_like(text).bool())
    return [int(rank) + 1 for rank in layout.token_closes.nonzero().squeeze(1)]


def latents_by_hand(model, text, ahead):
    """Predictions of the sentence that follows a text, and of those after it, without any cache."""
    latents, mask = model.encode_sentences(text)
    closed = len(sentence_ends(model, text))
    inputs = torch.cat([model.model.start_latents.weight, latents[0, :closed].flatten(1)])
    inputs = model.model.latent_input(inputs)
    predicted = []
    for _ in range(1 + ahead):
        state = model.model.language_model(inputs_embeds=inputs[None]).last_hidden_state[0, -1:]
        predicted.append(model.model.latents_from(state, torch.zeros(1, 1, dtype=torch.long))[0])
        inputs = torch.cat([inputs, model.next_latent_head(state)])
    return torch.stack(predicted)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("last", [30, 5])  # leaves a sentence open, closes one
@torch.no_grad()
def test_each_round_goes_on_as_one_sentence_and_beside_it_writes_what_is_foretold(option, last):
    model, text = looking_ahead(option), random_ids(1, 15)
    text[0, -1] = last
    prompt_length, rounds = text.shape[1], 0
    written = model.generate(text, sentences_at_once=3, **GREEDY)
    while text.shape[1] < written.shape[1]:
        first = model.generate(text, **{**GREEDY, "max_sentences": 1})
        others = model.decode_latents(latents_by_hand(model, text, 2)[1:])
        text = torch.cat([first, *(other[None] for other in others)], 1)
        if 2 in text[0, prompt_length:]:
            text = text[:, : prompt_length + text[0, prompt_length:].tolist().index(2) + 1]
        assert torch.equal(text[:, : written.shape[1]], written[:, : text.shape[1]])
        rounds += 1
    assert written.shape[1] == prompt_length + 45 or written[0, -1] == 2
    assert rounds > 1


@torch.no_grad()
def test_looking_ahead_leaves_the_cache_as_it_was(model):
    cache = model(random_ids(1, 20), use_cache=True).past_key_values
    before = copy.deepcopy(cache)
    assert predict_ahead(model, cache, 3).shape[:2] == (1, 3)
    assert torch.equal(cache.entry_sentence, before.entry_sentence)
    assert torch.equal(cache.sentence_state, before.sentence_state)
    for layer, layer_before in zip(cache.language_model.layers, before.language_model.layers, strict=True):
        assert torch.equal(layer.keys, layer_before.keys)


@torch.no_grad()
def test_a_text_that_was_cut_back_across_sentences_goes_on_all_the_same(model):
    text = random_ids(1, 40)
    cache = model(text, use_cache=True).past_key_values
    cache.crop(-20)
    written = model.generate(text[:, :25], past_key_values=cache, sentences_at_once=3, **GREEDY)
    assert torch.equal(written, model.generate(text[:, :25], sentences_at_once=3, **GREEDY))


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"shortlist_size": 9}])
def test_one_sentence_at_a_time_is_the_same_text(options):
    model, text = tiny_sllm(next_latent_weight=0.5, bag_of_words_weight=0.5), random_ids(1, 20)
    texts = []
    for more in ({}, {"sentences_at_once": 1}):
        torch.manual_seed(0)
        texts.append(model.generate(text, **{**GREEDY, **options, **more}))
    torch.manual_seed(0)
    texts.append(by_parallel_loop(model, text, **options))
    assert torch.equal(texts[0], texts[1]) and torch.equal(texts[0], texts[2])


def by_parallel_loop(model, text, **options):
    """As `generate`, with several sentences at once that are one."""
    with pytest.MonkeyPatch.context() as patch:
        loop = generation_sllm.write_in_parallel

        def one_at_a_time(*arguments):
            arguments[4].sentences_at_once = 1
            return loop(*arguments)

        patch.setattr(generation_sllm, "write_in_parallel", one_at_a_time)
        return model.generate(text, **{**GREEDY, **options, "sentences_at_once": 2})


@pytest.mark.parametrize("max_sentences, max_new_tokens", [(4, 60), (5, 60), (math.inf, 1), (math.inf, 17)])
def test_limits_are_kept(model, max_sentences, max_new_tokens):
    text = random_ids(1, 15)
    text[0, -1] = 5
    options = {"max_sentences": max_sentences, "max_new_tokens": max_new_tokens, "suppress_tokens": [2]}
    written = model.generate(text, **{**GREEDY, **options}, sentences_at_once=3)
    sentences = len([end for end in sentence_ends(model, written) if end > 15])
    if max_sentences == math.inf:
        assert written.shape[1] == 15 + max_new_tokens
    else:
        assert sentences == max_sentences and sentence_ends(model, written)[-1] == written.shape[1]


def test_sampled_sentences_stream_whole_stop_where_told_and_are_told_with_their_scores(model):
    class Pieces(list):
        put, end = list.append, lambda self: None

    text, pieces = random_ids(1, 15), Pieces()
    torch.manual_seed(2)
    found = model.generate(
        text,
        **{**GREEDY, "do_sample": True, "max_sentences": 7},
        sentences_at_once=3,
        top_k=20,
        suppress_tokens=[2],
        streamer=pieces,
        stopping_criteria=[lambda ids, scores, **kwargs: (ids[:, -1] == 40) & (ids.shape[1] > 30)],
        return_dict_in_generate=True,
        output_scores=True,
    )
    written = found.sequences
    assert torch.equal(torch.cat([piece.flatten() for piece in pieces]), written[0])
    ends = [end for end in sentence_ends(model, written) if end > 15]
    assert torch.tensor([len(piece.flatten()) for piece in pieces]).cumsum(0).tolist()[1:][: len(ends)] == ends
    assert written[0, -1] == 40 or len(ends) == 7
    assert len(found.scores) == written.shape[1] - 15
    for token, scores in zip(written[0, 15:], found.scores, strict=True):
        assert scores[0, token] > -torch.inf and (scores > -torch.inf).sum() <= 20
    # The cache that comes back fits the text.
    rest = {**GREEDY, "max_new_tokens": 20}
    again = model.generate(written, past_key_values=found.past_key_values, sentences_at_once=3, **rest)
    assert torch.equal(again, model.generate(written, sentences_at_once=3, **rest))


@pytest.mark.parametrize(
    "weight, rows, kwargs, message",
    [
        (0.0, 1, {}, "has not learned to look further"),
        (1.0, 1, {"max_sentences": None}, "needs `max_sentences`"),
        (1.0, 1, {"sentences_at_once": 0}, "`sentences_at_once` is 0"),
        (1.0, 2, {}, "batch of 2"),
        (1.0, 1, {"cache_implementation": "static"}, "cannot be cut back"),
    ],
)
def test_what_cannot_be_written_at_once_is_refused(weight, rows, kwargs, message):
    kwargs = {**GREEDY, "sentences_at_once": 2, **kwargs}
    with pytest.raises(ValueError, match=message):
        tiny_sllm(next_latent_weight=weight).generate(random_ids(rows, 20), **kwargs)


@torch.no_grad()
def test_looking_ahead_costs_what_the_decoder_alone_makes_of_foretold_latents(model):
    from hf_sllm.evaluation.parallel import score_ahead

    rows = [random_ids(1, length, seed=length) for length in (40, 9, 31)]
    token_ids, mask = padded([row[0] for row in rows], "right")
    nats, layout = score_ahead(model, token_ids, mask.bool(), 2)
    expected, tokens = torch.zeros(4, dtype=torch.float64), 0
    for row in rows:
        ends = [0, *sentence_ends(model, row)]
        ends += [row.shape[1]] if ends[-1] < row.shape[1] else []
        log_probs = model(row).logits[0].log_softmax(-1)
        for number in range(2, len(ends) - 1):
            sentence = row[0, ends[number] : ends[number + 1]]
            before = torch.arange(ends[number], ends[number + 1]) - 1
            expected[0] -= log_probs[before, sentence].sum()
            tokens += len(sentence)
            for distance in range(3):
                known = row[:, : ends[number - distance]]
                latents = latents_by_hand(model, known, distance)[-1:] if known.shape[1] else None
                if latents is None:
                    latents = start_ahead(model, distance)
                expected[1 + distance] -= alone(model, latents, sentence)
    assert len(layout.token_index) == tokens > 20
    torch.testing.assert_close(nats, expected, rtol=1e-4, atol=1e-3)


def start_ahead(model, ahead):
    inputs = model.model.latent_input(model.model.start_latents.weight)
    for _ in range(ahead):
        state = model.model.language_model(inputs_embeds=inputs[None]).last_hidden_state[0, -1:]
        inputs = torch.cat([inputs, model.next_latent_head(state)])
    state = model.model.language_model(inputs_embeds=inputs[None]).last_hidden_state[:, -1:]
    return model.model.latents_from(state, torch.full((1, 1), ahead))[0]


def alone(model, latents, sentence):
    """Log-likelihood of a sentence, given its latents alone."""
    decoder = model.model.sentence_decoder
    embeds = torch.cat([decoder.latent_prefix(latents)[0], model.get_input_embeddings()(sentence)])
    prefix = latents.shape[1]
    position_ids = torch.cat([torch.zeros(prefix, dtype=torch.long), torch.arange(len(sentence)) + 1])
    states = decoder.model(
        inputs_embeds=embeds[None],
        position_ids=position_ids[None],
        attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
    ).last_hidden_state[0]
    log_probs = model.compute_logits(decoder.output_projection(states)).log_softmax(-1)
    return log_probs[torch.arange(len(sentence)) + prefix - 1, sentence].sum()
