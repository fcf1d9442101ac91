"""Predictors of latents: what they sample is what there is, and the same wherever a text is read or written."""

import math

import pytest
import torch
from models import BOUNDARIES, option_model, padded, random_ids, tiny_backbone, tiny_sllm
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hf_sllm.modeling import SllmCache, SllmForCausalLM
from hf_sllm.modeling.latent_normaliser import LatentNormaliser
from hf_sllm.modeling.latent_predictor import (
    LATENT_PREDICTORS,
    follow_flow,
    repulsion,
    sentence_noise,
    signal_levels,
    undo_diffusion,
)

# Two ways in which a text may go on: their shares, where they lie in the plane, and how far each is spread.
SHARES, CENTERS, SPREAD = torch.tensor([0.3, 0.7]), torch.tensor([[-1.5, 0.5], [0.7, -0.3]]), 0.15


def exact_mean(noisy, signal, noise):
    """What the point without noise is on average, given the noisy ones `(N, 1, 2)`."""
    points = noisy[:, 0]
    variance = (signal * SPREAD) ** 2 + noise**2
    distance = (points[:, None] - signal * CENTERS).square().sum(-1)  # (N, 2)
    weight = torch.softmax(SHARES.log() - distance / (2 * variance), 1)
    pulled = CENTERS + signal * SPREAD**2 / variance * (points[:, None] - signal * CENTERS)
    return (weight[..., None] * pulled).sum(1)[:, None]


def exact_velocity(noisy, time):
    clean = exact_mean(noisy, 1 - time, time)
    return (noisy - clean) / time, None


def exact_clean(signal):
    def clean(noisy, time):
        kept = signal[round(time * len(signal)) - 1]
        return exact_mean(noisy, kept, math.sqrt(1 - kept**2)), None

    return clean


def found(points):
    """The share of points near one of the two, of these the share near the first, and their spread about theirs."""
    distance, nearest = (points[:, 0][:, None] - CENTERS).norm(dim=-1).min(1)
    near = distance <= 3 * SPREAD
    own = points[near, 0] - CENTERS[nearest[near]]
    return near.float().mean(), (nearest[near] == 0).float().mean(), own.square().mean().sqrt()


@pytest.fixture
def noise():
    return torch.randn(20_000, 1, 2, generator=torch.Generator().manual_seed(0))


def test_the_normaliser_centres_and_scales_whatever_the_tails():
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(100_000, 4, 3, generator=generator)
    tails = normal[..., 0] / (normal[..., 1:].square().sum(-1) / 2).sqrt()  # Student's t with 2 degrees of freedom
    values = (tails * torch.tensor([1.0, 3.0, 0.1, 10.0]))[:, None]
    normaliser = LatentNormaliser((1, 4))
    normaliser.observe(values)
    standard = normaliser.normalise(values)
    low, median, high = torch.quantile(standard, torch.tensor([0.25, 0.5, 0.75]), dim=0)
    assert median.abs().max() < 0.02
    torch.testing.assert_close(high - low, torch.full((1, 4), 1.349), rtol=0.02, atol=0)
    torch.testing.assert_close(normaliser.restore(standard), values, rtol=1e-4, atol=1e-4)
    by_deviation = values / values.std(0)  # which a few extreme values make far too small
    low, high = torch.quantile(by_deviation, torch.tensor([0.25, 0.75]), dim=0)
    assert (high - low).max() < 1.349 / 2


def test_the_normaliser_follows_the_latents_and_does_not_take_few_for_many():
    normaliser, latents = LatentNormaliser((1, 2), momentum=0.5), torch.randn(1000, 1, 2)
    normaliser.observe(latents[:3] + 100)
    assert normaliser.center.abs().max() == 0
    normaliser.observe(latents)
    normaliser.observe(latents + 4)
    torch.testing.assert_close(normaliser.center, torch.full((1, 2), 2.0), rtol=0, atol=0.2)


def test_flow_finds_both_futures_in_their_shares(noise):
    near, first, spread = found(follow_flow(exact_velocity, noise, 50))
    assert near >= 0.99 and abs(first - 0.3) <= 0.02 and spread >= 0.13


def test_flow_with_the_wrong_sign_or_too_much_noise_finds_neither(noise):
    def backwards(noisy, time):
        return -exact_velocity(noisy, time)[0], None

    assert found(follow_flow(backwards, noise, 50))[0] < 0.1
    assert found(follow_flow(exact_velocity, 3 * noise, 50))[0] < 0.8


def test_more_steps_follow_the_distribution_better(noise):
    near = [float(found(follow_flow(exact_velocity, noise, steps))[0]) for steps in (1, 2, 5, 50)]
    assert near == sorted(near) and near[0] < 0.5


@pytest.mark.parametrize("schedule, least_spread", [("cosine", 0.13), ("quadratic", 0.06), ("sigmoid", 0.1)])
def test_diffusion_finds_both_futures_in_their_shares(noise, schedule, least_spread):
    """The less noise the first level has, the less of the spread is lost in the last step, which takes the mean."""
    signal = signal_levels(schedule).tolist()
    assert signal[-1] == 0 and signal == sorted(signal, reverse=True)
    near, first, spread = found(undo_diffusion(exact_clean(signal), noise, signal, 40))
    assert near >= 0.99 and abs(first - 0.3) <= 0.02 and spread >= least_spread


def test_diffusion_fails_where_some_signal_is_left_at_the_beginning_or_the_mean_is_taken(noise):
    ends = torch.tensor([0.001, 0.0012], dtype=torch.float64).sqrt()
    left = torch.cumprod(1 - torch.linspace(*ends.tolist(), 100, dtype=torch.float64) ** 2, 0).sqrt().tolist()
    assert left[-1] > 0.9
    assert found(undo_diffusion(exact_clean(left), noise, left, 40))[0] < 0.9
    assert found(exact_mean(noise, 0.0, 1.0))[0] == 0


def test_less_noise_at_the_beginning_keeps_to_what_is_likely(noise):
    signal = signal_levels("cosine").tolist()
    assert found(undo_diffusion(exact_clean(signal), 0.6 * noise, signal, 40))[1] < 0.25


@pytest.mark.parametrize(
    "sample", [follow_flow, lambda *a: undo_diffusion(*a[:2], signal_levels("cosine").tolist(), *a[2:])]
)
def test_guidance_goes_from_what_is_always_so_to_what_the_state_says(sample):
    noise = torch.randn(50, 3, 4)
    conditional, free = (lambda noisy, time: noisy * time * 0.9), (lambda noisy, time: noisy.cos())

    def both(noisy, time):
        return conditional(noisy, time), free(noisy, time)

    of_state = sample(lambda noisy, time: (conditional(noisy, time), None), noise, 8, 1.0)
    guided = {scale: sample(both, noise, 8, scale) for scale in (1.0, 3.0)}
    torch.testing.assert_close(guided[1.0], of_state, rtol=1e-4, atol=1e-4)
    assert (guided[3.0] - of_state).abs().max() > 0.1


def test_noise_depends_on_seed_and_sentence_alone():
    noise = sentence_noise([3, 4], torch.tensor([[0, 1, 2], [2, 1, 0]]), (2, 5))
    assert noise.shape == (2, 3, 2, 5) and noise.flatten(0, 1).unique(dim=0).shape[0] == 6
    torch.testing.assert_close(sentence_noise([4], torch.tensor([[0]]), (2, 5))[0, 0], noise[1, 2])
    assert abs(sentence_noise(list(range(200)), torch.arange(20).expand(200, 20), (4,)).std() - 1) < 0.03


@pytest.mark.parametrize("kind", LATENT_PREDICTORS)
def test_in_training_the_predictor_learns_and_the_encoder_is_not_pulled_to_it(kind):
    model = tiny_sllm(latent_predictor={"type": kind}).train()
    token_ids = random_ids(2, 60)
    output = model(token_ids, labels=token_ids)
    predictor = model.model.latent_predictor
    assert predictor.normaliser.batches_seen == 1
    assert output.losses["latent_prediction"] > 0.5
    # The latents are what is to be told: to tell them more easily they must not become all the same.
    model.model.latent_input.weight.data.zero_()
    (gradient,) = torch.autograd.grad(
        model(token_ids, labels=token_ids).losses["latent_prediction"],
        model.model.sentence_encoder.latent_head.weight,
        allow_unused=True,
    )
    assert gradient is None or gradient.abs().max() == 0
    model.zero_grad()
    model(token_ids, labels=token_ids).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_a_predictor_says_nothing_at_first_and_then_what_the_state_says():
    predictor = SllmForCausalLM.from_backbone(
        tiny_backbone(), boundary_token_ids=BOUNDARIES, latent_predictor={"type": "flow", "num_layers": 1}
    ).model.latent_predictor
    states, latents = torch.randn(5, 32), torch.randn(5, 2, 32)
    assert predictor.denoiser(latents, torch.rand(5), states).abs().max() == 0
    states.requires_grad_()
    trained = option_model("flow").model.latent_predictor.denoiser
    hidden = torch.tensor([True, True, False, True, True])
    trained(latents, torch.rand(5), states, hidden).square().sum().backward()
    assert states.grad.abs().amax(1).gt(0).tolist() == hidden.tolist()


def test_futures_differ_and_are_the_same_again_in_any_batch():
    model, prompt = option_model("flow"), random_ids(2, 12)
    options = {"max_new_tokens": 20, "do_sample": False, "latent_seed": 5, "latent_steps": 4}
    one = model.generate(prompt[1:], **options)
    torch.testing.assert_close(model.generate(prompt, **options)[1:], one)
    torch.testing.assert_close(model.generate(prompt[1:], **options, max_sentences=50), one)
    assert not torch.equal(model.generate(prompt[1:], **{**options, "latent_seed": 6}), one)
    assert not torch.equal(model.generate(prompt[1:], **options, latent_noise_scale=0.0), one)
    assert not torch.equal(model.generate(prompt[1:], **options, latent_guidance_scale=4.0), one)


def test_each_future_of_a_text_has_its_own_seed():
    model, prompt = option_model("flow"), random_ids(2, 12)
    torch.manual_seed(0)
    several = model.generate(prompt, max_new_tokens=1, do_sample=True, num_return_sequences=3, latent_seed=7,
                             return_dict_in_generate=True)  # fmt: skip
    assert several.past_key_values.latent_seeds.tolist() == [7, 8, 9, 7, 8, 9]
    beams = model.generate(prompt, max_new_tokens=2, num_beams=2, do_sample=False, return_dict_in_generate=True)
    assert set(beams.past_key_values.latent_seeds.tolist()) == {0}


def test_a_loaded_model_predicts_the_same(tmp_path):
    model, token_ids = option_model("flow"), random_ids(2, 30)
    model.model.latent_predictor.normaliser.observe(3 + torch.randn(50, 2, 32))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(token_ids).logits, model(token_ids).logits)


def test_adapters_train_the_predictor_in_full():
    model = tiny_sllm(latent_predictor={"type": "flow"})
    adapted = get_peft_model(
        model, LoraConfig(target_modules=["q_proj"], modules_to_save=["latent_predictor"])
    ).train()
    token_ids = random_ids(2, 40)
    adapted(input_ids=token_ids, labels=token_ids).loss.backward()
    trained = [name for name, parameter in adapted.named_parameters() if parameter.grad is not None]
    assert any("latent_predictor.modules_to_save.default.denoiser" in name for name in trained)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"type": "gan"}, "`latent_predictor.type` is 'gan': it must be one of linear, mse, flow, diffusion"),
        ({"type": "flow", "steps": 0}, "`latent_predictor.steps` is 0: it must be a whole number of at least 1"),
        (
            {"type": "flow", "unconditional": 2},
            "`latent_predictor.unconditional` is 2: it must be a number from 0 to 1",
        ),
        ({"kind": "flow"}, "`latent_predictor` has kind: it has type"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_sllm(latent_predictor=fields)


@pytest.mark.parametrize("name", ["next_latent_weight", "contrastive_weight"])
def test_what_needs_a_map_is_refused(name):
    message = f"`{name}` is 0.5: it needs the latents that a map predicts, and a `latent_predictor` of type 'flow'"
    with pytest.raises(ValueError, match=message):
        tiny_sllm(latent_predictor={"type": "flow"}, **{name: 0.5})


@pytest.mark.parametrize(
    "option, given, message",
    [
        ("default", {"latent_steps": 3}, "`latent_steps` is 3, and the latents of this model are not sampled"),
        ("flow", {"latent_steps": 0}, "`latent_steps` is 0: it must be a whole number of at least 1"),
        ("flow", {"latent_noise_scale": "high"}, "`latent_noise_scale` is 'high': it must be a number of at least 0"),
    ],
)
def test_options_of_generate_that_cannot_be_are_refused(option, given, message):
    with pytest.raises(ValueError, match=message):
        option_model(option).generate(random_ids(1, 5), max_new_tokens=2, **given)


@torch.no_grad()
def test_ahead_the_backbone_reads_its_own_predictions():
    model, rows = option_model("flow"), [random_ids(1, 40)[0], random_ids(1, 21, seed=2)[0]]
    token_ids, mask = padded(rows, "left")
    found = model.predict_ahead(token_ids, mask, count=3, latent_seed=4)
    for row, ahead in zip(rows, found, strict=True):
        latents, is_sentence = model.encode_sentences(row[None])
        closes = model.model.segmenter.layout(row[None], torch.ones_like(row[None]).bool()).token_closes
        latents = latents[:, : int(closes.sum())]
        for number in range(3):
            cache = SllmCache(model.config)
            cache.latent_seeds = torch.tensor([4])
            expected = model.predict_next_latents(latents, cache=cache)[:, -1:]
            torch.testing.assert_close(ahead[None, number : number + 1], expected, rtol=1e-4, atol=1e-4)
            latents = torch.cat([latents, expected], 1)


def test_in_training_a_share_of_what_the_backbone_reads_is_its_own(monkeypatch):
    model, token_ids = tiny_sllm(latent_predictor={"type": "flow", "own_inputs": 0.5}).train(), random_ids(4, 60)
    inputs = []
    model.model.latent_input.register_forward_hook(lambda module, given, output: inputs.append(given[0]))
    own = torch.full((2, 32), 7.0)
    monkeypatch.setattr(model.model.latent_predictor, "sample", lambda states, *_: own.expand(len(states), -1, -1))
    model(token_ids, labels=token_ids).loss.backward()
    closed = int(model.model.segmenter.layout(token_ids, torch.ones_like(token_ids).bool()).token_closes.sum())
    first, second = ((read == 7).all(-1).sum().item() for read in inputs)
    assert first == 0 and 0.25 * closed < second < 0.75 * closed


def test_where_predictions_are_not_what_the_backbone_reads_nothing_is_predicted_ahead():
    with pytest.raises(ValueError, match="`latent_predictor` of this model is a map"):
        option_model("default").predict_ahead(random_ids(1, 20))
    for given in ({"count": 0}, {"futures": 0}, {"latent_steps": 0}):
        (name,) = given
        with pytest.raises(ValueError, match=f"`{name}` is 0: it must be .*at least 1"):
            option_model("flow").predict_ahead(random_ids(1, 20), **given)


@pytest.mark.parametrize("count, dimensions", [(8, 2), (8, 32), (8, 512), (2, 32)])
def test_futures_that_push_each_other_apart_do(count, dimensions):
    points = torch.randn(1, count, dimensions, generator=torch.Generator().manual_seed(0))

    def distances(bandwidth):
        push = repulsion(points, bandwidth)
        moved = points + 0.3 * push / push.norm().clamp(min=1e-8)
        return torch.pdist(moved[0])

    before, ours, published = torch.pdist(points[0]), distances(2.0), distances(1.0)
    assert ours.mean() > before.mean() and ours.min() > before.min()
    assert published.mean() < ours.mean()  # for those that are far apart attract each other
    if count == 2:
        torch.testing.assert_close(published, before)


def test_a_future_alone_is_not_pushed_and_several_are_further_apart():
    model, token_ids = option_model("flow"), random_ids(1, 30)
    together, pushed = (model.predict_ahead(token_ids, futures=4, diversity=strength) for strength in (0.0, 0.5))
    assert together.shape == (4, 1, 2, 32)
    assert torch.pdist(pushed.flatten(1)).mean() > torch.pdist(together.flatten(1)).mean()
    torch.testing.assert_close(model.predict_ahead(token_ids, diversity=0.5), together[:1], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="`diversity` is 0.5: .* needs a `latent_predictor` of type `flow`; .*'mse'"):
        tiny_sllm(latent_predictor={"type": "mse"}).predict_ahead(token_ids, diversity=0.5)
