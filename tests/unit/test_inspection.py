"""What is reported of latents is what is true of them, on models and numbers where the truth is known."""

import dataclasses
import functools
import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from hf_sllm import SentenceVaeModel, SllmForCausalLM
from hf_sllm.cli import app
from hf_sllm.data import document_ids, train_tokenizer
from hf_sllm.evaluation import bits_per_byte, reconstruction
from hf_sllm.inspection import LatentHealth, findings, inspect_latents, plot_latents
from hf_sllm.inspection.latents import (
    AFTER_OTHER,
    DRAWN,
    HIDDEN,
    NOISE,
    NOISY,
    NOISY_BEFORE,
    OTHER,
    OTHER_MEMORY,
    START,
    TRUE,
    of_other_documents,
    with_noise,
)
from hf_sllm.inspection.results import reading_of
from hf_sllm.inspection.sample import take_sample
from hf_sllm.inspection.scores import (
    Reading,
    Score,
    bucket,
    bucket_name,
    encode,
    in_place,
    predict,
    score_next_sentences,
)
from hf_sllm.inspection.statistics import (
    effective_dimension,
    kl_per_unit,
    mutual_information,
    spectrum,
    standard_deviation,
)

DOCUMENTS = [
    {"text": "A goat ate the hat. The hat was red. Yes."},
    {"text": "Où est la clé? Here it is! Thank you very much indeed."},
    {"text": "No."},
    {"text": "The goat ran. The hat ran! Who ate the key? The red goat did."},
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([row["text"] for row in DOCUMENTS], 280)


@pytest.fixture(scope="module")
def make(tokenizer):
    def make_model(kind: str = "sllm", **fields):
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            "llama", vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.5,
            bos_token_id=0, eos_token_id=1, pad_token_id=2,
        )  # fmt: skip
        model_class = SllmForCausalLM if kind == "sllm" else SentenceVaeModel
        fields = {"encoder_layers": 1, "decoder_layers": 1, "max_sentence_length": 16, "latent_size": 8, **fields}
        return model_class.from_backbone(AutoModelForCausalLM.from_config(config), tokenizer, **fields).eval()

    return make_model


@pytest.fixture(scope="module")
def inspect(tokenizer):
    return lambda model, **options: inspect_latents(model, tokenizer, DOCUMENTS, progress=False, **options)


@pytest.fixture(scope="module")
def health_of(make, inspect):
    """The report on a model of each of the `KINDS` as it is made."""
    return functools.cache(lambda kind: inspect(make(**KINDS[kind])))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


KINDS = {
    "sllm": {},
    "sllm_that_reconstructs": {"reconstruction_weight": 1.0, "kl_weight": 0.1},
    "vae": {"kind": "vae"},
    "gaussian_vae": {"kind": "vae", "kl_weight": 0.1, "num_latents": 1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_constant_latents_are_reported_collapsed(kind, make, inspect):
    model = make(**KINDS[kind])
    head = model.base_model.sentence_encoder.latent_head
    head.weight.data.zero_()
    head.bias.data[:8] = 0.3
    health = inspect(model)
    assert (health.active_units, health.effective_dimension) == (0, 0.0)
    assert [row.bits for row in health.information] == pytest.approx([0.0] * len(health.information), abs=1e-6)
    assert findings(health)[0].startswith("Posterior collapse: none of the")
    if health.kl is not None:
        assert health.kl == pytest.approx([0.5 * 0.3**2] * len(health.variance), abs=1e-6)


def test_latents_with_one_direction_are_active_but_of_low_rank(make, inspect):
    model = make("vae", num_latents=1)
    model.sentence_encoder.latent_head.weight.data.copy_(torch.ones(8, 1) * torch.randn(16))
    health = inspect(model)
    assert health.active_units == len(health.variance) == 8
    assert health.effective_dimension == pytest.approx(1.0)
    assert findings(health)[0].startswith("Low rank: 8 units are active")


@pytest.mark.parametrize("kind", ["sllm", "vae"])
def test_latents_that_the_decoder_does_not_read_make_no_difference(kind, make, inspect):
    model = make(kind)
    model.base_model.sentence_decoder.latent_prefix.weight.data.zero_()
    health = inspect(model)
    readings = health.next_sentence or health.reconstruction
    nats = [reading.whole.nats for reading in readings]
    assert nats == pytest.approx(nats[:1] * len(nats), rel=1e-6)
    assert any(finding.startswith("Unused latents") for finding in findings(health))


def test_sentences_that_the_backbone_does_not_read_make_no_difference(make, inspect):
    model = make()
    model.model.latent_input.weight.data.zero_()
    model.model.latent_input.bias.data.normal_()
    model.model.latent_output.weight.data.normal_(std=0.3)  # a part of it begins at zero
    health = inspect(model)
    nats = {(reading.latents, reading.noise): reading.whole.nats for reading in health.next_sentence}
    same = [(TRUE, 0.0), (AFTER_OTHER, 0.0), *((NOISY_BEFORE, noise) for noise in NOISE)]
    assert [nats[key] for key in same] == pytest.approx([nats[TRUE, 0.0]] * len(same), rel=1e-6)
    assert nats[HIDDEN, 0.0] != pytest.approx(nats[TRUE, 0.0], rel=1e-3)


def test_next_sentence_nats_are_the_models_own(make, inspect, tokenizer):
    model = make()
    whole = reading_of(inspect(model).next_sentence, TRUE).whole
    expected = bits_per_byte(model, tokenizer, DOCUMENTS, progress=False)
    assert whole.tokens == expected.tokens
    assert whole.nats * whole.tokens / math.log(2) == pytest.approx(expected.bits, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("options", [{}, {"decoder_context_length": 5}, {"conditioning": "prefix", "num_latents": 1}])
def test_reconstruction_nats_are_the_models_own(options, batch_size, make, inspect, tokenizer):
    model = make("vae", **options)
    whole = reading_of(inspect(model, batch_size=batch_size).reconstruction, TRUE).whole
    rows = [torch.tensor([ids[1:]]) for ids in document_ids([row["text"] for row in DOCUMENTS], tokenizer)]
    with torch.no_grad():
        nats = sum(model(ids, labels=ids).loss.item() * ids.numel() for ids in rows)
    assert whole.tokens == sum(ids.numel() for ids in rows)
    assert whole.nats == pytest.approx(nats / whole.tokens, rel=1e-5)


def test_reconstruction_is_what_the_evaluation_measures(make, inspect, tokenizer):
    model = make("vae")
    # Then some sentences of one token are right.
    model.lm_head.weight.data.mul_(0.1)[tokenizer.eos_token_id].fill_(1.0)
    found = reading_of(inspect(model).reconstruction, TRUE).whole
    expected = reconstruction(model, tokenizer, DOCUMENTS, progress=False)
    assert (found.tokens, found.accuracy) == (expected.tokens, pytest.approx(expected.next_token_accuracy))
    assert found.written == pytest.approx(expected.token_accuracy) and found.written > 0
    assert found.exact == pytest.approx(expected.exact_sentences) and found.exact > 0


def test_an_sllm_reconstructs_as_its_training_loss_says(make, inspect, tokenizer):
    """In training mode, since that is when the model computes the term; it has no dropout."""
    model = make(reconstruction_weight=1.0)
    whole = reading_of(inspect(model).reconstruction, TRUE).whole
    nats = 0.0
    for ids in document_ids([row["text"] for row in DOCUMENTS], tokenizer):
        input_ids = torch.tensor([ids])
        nats += model.train()(input_ids, labels=input_ids, num_items_in_batch=1).losses["reconstruction"].item()
    assert whole.nats * whole.tokens == pytest.approx(nats, rel=1e-5)


def test_predictions_given_back_to_the_decoder_change_nothing(make, tokenizer):
    model = make()
    sample = take_sample(DOCUMENTS, tokenizer, model.config, 8, 2, model.device)
    with torch.no_grad():
        predicted = predict(model, sample, encode(model, sample)[0])
        own, given = (score_next_sentences(model, sample, latents) for latents in (None, predicted))
        other = score_next_sentences(model, sample, predicted.flip(0))
    torch.testing.assert_close(own.nats, given.nats, equal_nan=True)
    assert not torch.allclose(own.nats.nan_to_num(), other.nats.nan_to_num(), rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_positions_and_lengths_add_up_to_the_whole(kind, health_of):
    health = health_of(kind)
    for reading in [*health.reconstruction, *health.next_sentence]:
        for scores in (reading.by_position.values(), reading.by_length.values()):
            assert sum(score.tokens for score in scores) == reading.whole.tokens
            for name in ("nats", "accuracy") if reading.whole.written is None else ("nats", "accuracy", "written"):
                total = sum(getattr(score, name) * score.tokens for score in scores)
                assert total / reading.whole.tokens == pytest.approx(getattr(reading.whole, name), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_model_gets_the_readings_that_mean_something(kind, health_of):
    health = health_of(kind)
    alone = {TRUE, HIDDEN, OTHER, NOISY}
    drawn = {DRAWN} if health.kl is not None else set()
    tasks = {"reconstruction": alone | drawn, "next_sentence": alone | drawn | {AFTER_OTHER, START, NOISY_BEFORE}}
    if kind == "sllm":
        tasks["reconstruction"] = set()
    if health.model_type == "sentence_vae":
        tasks["next_sentence"] = set()
    assert {task: {reading.latents for reading in getattr(health, task)} for task in tasks} == tasks


def test_what_is_written_is_compared_with_the_sentence_it_comes_from(make, inspect, tokenizer, monkeypatch):
    """A decoder that knows the sentences gets all of them; one that stops early gets a share."""
    model = make("vae")
    sample = take_sample(DOCUMENTS, tokenizer, model.config, 99, 16, model.device)
    sentences = sample.sentences()
    monkeypatch.setattr(model, "decode", lambda latents: sentences)
    whole = reading_of(inspect(model).reconstruction, TRUE).whole
    assert (whole.written, whole.exact) == (1.0, 1.0)
    monkeypatch.setattr(model, "decode", lambda latents: [sentence[:3] for sentence in sentences])
    whole = reading_of(inspect(model).reconstruction, TRUE).whole
    assert whole.written == sum(min(len(sentence), 3) for sentence in sentences) / len(sample.token_ids)
    assert whole.exact == sum(len(sentence) <= 3 for sentence in sentences) / len(sentences)
    monkeypatch.setattr(model, "decode", lambda latents: [sentence.repeat(2) for sentence in sentences])
    whole = reading_of(inspect(model).reconstruction, TRUE).whole
    assert (whole.written, whole.exact) == (1.0, 0.0)


def test_a_token_in_another_place_is_not_in_place():
    original = torch.tensor([3, 4, 5, 6])
    assert in_place(original, torch.tensor([3, 5, 5])).tolist() == [True, False, True, False]
    assert in_place(original, torch.tensor([3, 4, 5, 6, 7])).all()


def test_buckets_are_what_their_names_say():
    names = [bucket_name(index) for index in bucket(torch.arange(1, 18)).tolist()]
    assert names == ["1", "2", *["3-4"] * 2, *["5-8"] * 4, *["9-16"] * 8, "17-32"]


def test_as_many_sentences_are_read_as_asked_for(make, inspect):
    for limit in (6, 7, 8):
        assert inspect(make(), limit=limit).sentences == limit


def test_sentences_of_a_single_text_are_refused_with_the_remedy(make, inspect):
    with pytest.raises(ValueError, match="`limit` is 2: so many sentences come from 1 of the documents"):
        inspect(make(), limit=2)


def test_a_model_in_training_is_inspected_without_dropout_and_left_in_training(make, inspect):
    model = make("vae", token_dropout=0.5, latent_noise=1.0)
    expected = inspect(model)
    assert inspect(model.train()) == expected
    assert model.training


@pytest.mark.parametrize("kind", ["sllm_that_reconstructs", "gaussian_vae"])
def test_drawn_latents_are_as_far_from_their_mean_as_their_variance_says(kind, make, inspect):
    model = make(**KINDS[kind])
    for log_variance, same in ((-40.0, True), (0.0, False)):
        model.base_model.sentence_encoder.latent_head.bias.data[8:] = log_variance
        health = inspect(model)
        for readings in filter(None, (health.reconstruction, health.next_sentence)):
            true, drawn = (reading_of(readings, latents).whole.nats for latents in (TRUE, DRAWN))
            assert (drawn == pytest.approx(true, rel=1e-5)) == same


def test_other_latents_are_never_of_the_same_text():
    document = torch.tensor([0, 0, 0, 1, 2, 2])
    for _ in range(50):
        index = of_other_documents(document, generator())
        assert (document[index] != document).all()
    drawn = torch.stack([of_other_documents(document, torch.Generator().manual_seed(seed)) for seed in range(200)])
    assert all(set(drawn[:, i].tolist()) == set((document != document[i]).nonzero()[:, 0].tolist()) for i in range(6))


def test_noise_has_the_scale_of_each_unit():
    latents = torch.randn(4000, 1, 3, generator=generator()) * torch.tensor([0.1, 5.0, 0.0]) + 7
    for noise, noisy in with_noise(latents, generator()):
        added = (noisy - latents).std(0)[0] / torch.tensor([0.1, 5.0, 1.0])
        assert added.tolist() == pytest.approx([noise, noise, 0.0], rel=0.05)


def test_kl_per_unit_is_that_of_the_normal_distributions():
    mean, log_variance = torch.randn(50, 3, dtype=torch.double), torch.randn(50, 3, dtype=torch.double)
    given = torch.distributions.Normal(mean, torch.exp(log_variance / 2))
    expected = torch.distributions.kl_divergence(given, torch.distributions.Normal(0.0, 1.0)).mean(0)
    torch.testing.assert_close(kl_per_unit(mean, log_variance), expected)


def test_effective_dimension_counts_directions_however_units_mix_them():
    independent = torch.randn(20000, 3, generator=generator(), dtype=torch.double)
    mixed = independent @ torch.linalg.qr(torch.randn(9, 3, dtype=torch.double))[0].T
    assert effective_dimension(spectrum(mixed)) == pytest.approx(3.0, abs=0.01)
    torch.testing.assert_close(spectrum(mixed).sum(), mixed.var(0, correction=0).sum())


def test_latents_far_apart_tell_their_sentence_and_equal_ones_only_their_kind():
    mean = torch.arange(64).double()[:, None] * torch.tensor([100.0, 0.0])
    variance = torch.ones_like(mean)
    assert mutual_information(mean, variance, generator()) == pytest.approx(6.0)
    assert mutual_information(mean // 400 * 400, variance, generator()) == pytest.approx(4.0)
    assert mutual_information(torch.zeros_like(mean), variance, generator()) == pytest.approx(0.0)
    assert mutual_information(mean, torch.zeros_like(mean), generator()) == 0.0


def test_overlapping_latents_tell_what_the_integral_says():
    """Two means one standard deviation from 0: the entropy of the mixture less that of the noise."""
    mean = torch.tensor([-1.0, 1.0]).repeat(1500)[:, None]
    z = torch.linspace(-12, 12, 20001, dtype=torch.double)
    mixture = (torch.exp(-((z - 1) ** 2) / 2) + torch.exp(-((z + 1) ** 2) / 2)) / math.sqrt(8 * math.pi)
    entropy = -torch.trapezoid(mixture * mixture.log2(), z).item()
    expected = entropy - 0.5 * math.log2(2 * math.pi * math.e)
    assert mutual_information(mean, torch.ones_like(mean), generator()) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_information_is_bounded_by_the_samples_entropy_and_falls_with_noise(kind, health_of):
    health = health_of(kind)
    # The end of text, four times, is the one sentence that comes back.
    assert health.entropy == pytest.approx(math.log2(health.sentences) - 4 / health.sentences * math.log2(4))
    bits = [row.bits for row in health.information]
    assert all(value <= health.entropy + 1e-9 for value in bits)
    assert bits[0] > bits[-1]


def test_rounding_is_no_variation():
    mean = torch.full((100, 1), 3.0) + 1e-6 * torch.randn(100, 1)
    assert standard_deviation(mean).item() == 0.0
    assert standard_deviation(mean - 3.0).item() > 0.0


def made_up(latents: str, noise: float, first: float, later: float, written: float | None = None) -> Reading:
    """A reading of a hundred first tokens of sentences and as many later ones, with so many nats each."""
    scores = [Score(100, nats, 0.5, written) for nats in (first, later)]
    whole = Score(200, (first + later) / 2, 0.5, written)
    return Reading(latents, noise, whole, dict(zip(("1", "2"), scores, strict=True)), {"2": whole})


HEALTHY = {
    (TRUE, 0.0): (1.0, 1.0), (HIDDEN, 0.0): (3.0, 3.0), (OTHER, 0.0): (3.0, 3.0), (AFTER_OTHER, 0.0): (2.0, 2.0),
    (START, 0.0): (2.0, 2.0), (NOISY, 0.1): (1.0, 1.0), (NOISY_BEFORE, 0.1): (1.0, 1.0),
}  # fmt: skip


@pytest.mark.parametrize(
    "changes, begins",
    [
        ({}, "No sign of collapse"),
        ({(OTHER, 0.0): (1.0, 1.0)}, "Unused latents (next sentence): 1.000 nats per token with them"),
        ({(HIDDEN, 0.0): (1.0, 1.0)}, "Unused latents"),
        ({(AFTER_OTHER, 0.0): (1.0, 1.0)}, "Unread sentences (next sentence): 1.000 nats per token, 1.000 if"),
        ({(START, 0.0): (1.0, 1.0)}, "Unread sentences"),
        ({(START, 0.0): (3.0, 1.0)}, "First token only (next sentence): from a sentence's second token on 1.000"),
        ({(DRAWN, 0.0): (3.0, 3.0)}, "Unused latents (next sentence): 3.000 nats per token with them"),
        ({(OTHER_MEMORY, 0.0): (1.0, 1.0)}, "Unused memory (next sentence): 1.000 nats per token, 1.000 with"),
        ({(OTHER_MEMORY, 0.0): (3.0, 1.0)}, "First token only (next sentence)"),
        ({(OTHER_MEMORY, 0.0): (3.0, 3.0), (HIDDEN, 0.0): (1.0, 1.0)}, "No sign of collapse"),
        ({(NOISY, 0.1): (1.2, 1.2)}, "Brittle latents (next sentence, with noise of 0.1 standard deviations): 20%"),
        ({(NOISY_BEFORE, 0.1): (1.2, 1.2)}, "Brittle latents (next sentence, with noise before the backbone"),
    ],
)
def test_what_is_wrong_with_the_use_of_latents_is_said(changes, begins, health_of):
    readings = [made_up(*key, *nats) for key, nats in {**HEALTHY, **changes}.items()]
    (finding,) = findings(dataclasses.replace(health_of("sllm"), next_sentence=readings))
    assert finding.startswith(begins)


def test_reconstruction_that_the_least_noise_spoils_is_called_brittle(health_of):
    readings = [made_up(*key, *HEALTHY[key], written=0.9) for key in [(TRUE, 0.0), (HIDDEN, 0.0), (OTHER, 0.0)]]
    health = health_of("vae")
    for written, begins in ((0.72, "Brittle latents (reconstruction, with noise of 0.1"), (0.9, "No sign of")):
        noisy = made_up(NOISY, 0.1, 1.0, 1.0, written)
        (finding,) = findings(dataclasses.replace(health, reconstruction=[*readings, noisy]))
        assert finding.startswith(begins)


@pytest.mark.parametrize("kind", ["sllm_that_reconstructs", "vae"])
def test_what_is_saved_is_what_is_loaded_and_it_can_be_drawn(kind, health_of, tmp_path):
    health = health_of(kind)
    health.save(tmp_path / "latents.json")
    assert LatentHealth.load(tmp_path / "latents.json") == health
    plot_latents(health, tmp_path / "latents.png", "a model")
    assert (tmp_path / "latents.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def texts(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "texts.txt").write_text("\n".join(row["text"] for row in DOCUMENTS))
    return str(tmp_path / "texts.txt")


@pytest.mark.parametrize("kind", ["sllm", "gaussian_vae"])
def test_the_command_prints_the_report_and_writes_it(kind, make, health_of, tokenizer, texts, tmp_path):
    make(**KINDS[kind]).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    result = CliRunner().invoke(
        app, ["inspect", str(tmp_path / "model"), "--data", texts, "--output", str(tmp_path / "report")]
    )
    assert result.exit_code == 0, result.output
    expected = health_of(kind)
    assert LatentHealth.load(tmp_path / "report" / "latents.json") == expected
    assert (tmp_path / "report" / "latents.png").exists()
    printed = " ".join(result.stdout.split())
    assert all(finding in printed for finding in findings(expected))
    assert ("KL per sentence" in printed) == (expected.kl is not None)


def test_the_command_refuses_a_model_without_sentence_latents(make, texts, tmp_path):
    AutoConfig.for_model("gpt2").save_pretrained(tmp_path / "model")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "model"), "--data", texts])
    assert result.exit_code == 1
    assert "a 'gpt2' model, which has no sentence latents" in " ".join(result.stderr.split())
