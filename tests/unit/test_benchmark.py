"""Both sides of a benchmark do the same work: the same tokens, in sentences of the length asked for."""

import json
import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from hf_sllm.benchmark import Settings, benchmark_generation, make_pair, make_sides, measure_training, random_text
from hf_sllm.benchmark.generation import Clock, SentenceLength, measure_generation, write
from hf_sllm.benchmark.memory import PeakMemory, bytes_held
from hf_sllm.benchmark.predictors import PREDICTORS, measure_predictors
from hf_sllm.benchmark.roofline import memory_bandwidth, weights_read
from hf_sllm.benchmark.shapes import BOUNDARY, SHAPES, backbone_config, fit_shortlist
from hf_sllm.cli import app


def test_the_random_text_has_sentences_of_one_length():
    backbone, sllm = make_pair("tiny", 8, decoder_layers=1)
    token_ids = random_text(3, 64, 8, backbone.config.vocab_size)
    layout = sllm.model.segmenter.layout(token_ids, torch.ones_like(token_ids).bool())
    assert torch.bincount(layout.token_sentence).tolist() == [8] * 24


def test_both_sides_are_trained_on_the_text(monkeypatch):
    import hf_sllm.benchmark.training as benchmark

    trained = []
    plain = benchmark.training_step

    def spy(model, optimizer, token_ids, bf16, **texts):
        before = next(model.parameters()).clone()
        plain(model, optimizer, token_ids, bf16, **texts)
        assert not torch.equal(before, next(model.parameters()))
        trained.append((model.config.model_type, token_ids.shape, *texts))

    monkeypatch.setattr(benchmark, "training_step", spy)
    speed = measure_training(*make_pair("tiny", 8, decoder_layers=1), random_text(2, 32, 8, 300), 2, progress=False)
    turns = [
        ("llama", (2, 32)),
        ("sllm", (2, 32)),
        ("sllm", (8, 16), "attention_mask"),
        ("sllm", (2, 32), "position_ids"),
    ]
    assert trained == turns * 3
    assert all(figure > 0 for figure in vars(speed).values())


def test_texts_cut_unevenly_have_one_loss_padded_and_packed():
    from hf_sllm.benchmark.training import cut_unevenly, training_loss

    _, sllm = make_pair("tiny", 8, decoder_layers=1)
    padded, packed = cut_unevenly(random_text(2, 32, 8, 300))
    assert padded["attention_mask"].sum(1).tolist() == [16, 16, 8, 8, 4, 4, 4, 4]
    torch.testing.assert_close(training_loss(sllm.eval(), **padded), training_loss(sllm, **packed))


def test_the_command_prints_both_sides():
    command = ["bench", "training", "tiny", "--steps", "1", "--batch-size", "1", "--length", "32"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in ("backbone", "SLLM, decoder of", "padded", "packed"))


def test_the_shapes_of_a_model_come_with_special_tokens_that_the_text_has_not(tmp_path):
    AutoConfig.for_model(**SHAPES["tiny"], eos_token_id=BOUNDARY).save_pretrained(tmp_path)
    config = backbone_config(str(tmp_path))
    assert (config.hidden_size, config.num_hidden_layers, config.eos_token_id) == (32, 4, 0)


def test_unknown_shapes_are_refused():
    with pytest.raises(ValueError, match="`shapes` is 'huge': neither one of smollm2-135m, .*, tiny"):
        make_pair("huge", 8)


@pytest.mark.parametrize(
    "shapes, parameters", [("opt-125m", 125_239_296), ("opt-350m", 331_196_416), ("opt-1.3b", 1_315_758_080)]
)
def test_the_shapes_of_opt_are_those_of_the_models_on_the_hub(shapes, parameters):
    with torch.device("meta"):
        assert AutoModelForCausalLM.from_config(backbone_config(shapes)).num_parameters() == parameters


@pytest.mark.parametrize("layers", [1, 2])
def test_the_papers_architecture_has_as_many_encoder_layers_as_decoder_layers_and_writes_the_same_sentences(layers):
    backbone, sllm = make_pair("tiny", 4, layers, "paper")
    config = sllm.config
    assert (config.conditioning, config.pooling, config.decoder_context_length) == ("cross_attention", "sum", 0)
    assert config.sentence_encoder_config.num_hidden_layers == layers
    assert config.sentence_decoder_config.num_hidden_layers == layers
    for side in make_sides(backbone.eval(), sllm.eval()):
        written = write(side, random_text(2, 16, 4, 300), 4, 12, Clock(side.model))
        assert (written == BOUNDARY).nonzero()[:, 1].tolist() == [3, 7, 11, 15, 19, 23, 27] * 2


def tiny_sides(compiled=False, **fields):
    torch.manual_seed(0)
    backbone, sllm = make_pair("tiny", 4, decoder_layers=1, **fields)
    return make_sides(backbone.eval(), sllm.eval(), compiled)


def test_both_sides_write_as_many_tokens_in_sentences_of_the_length_asked_for():
    token_ids = random_text(2, 16, 4, 300)
    for side in tiny_sides():
        written = write(side, token_ids, 4, 12, Clock(side.model))
        assert written.shape == (2, 28)
        assert torch.equal(written[:, :16], token_ids)
        assert ((written == BOUNDARY).nonzero()[:, 1] % 4 == 3).all()
        assert (written == BOUNDARY).sum() == 2 * 28 // 4


def test_a_side_that_closes_its_sentences_elsewhere_is_found_out(monkeypatch):
    monkeypatch.setattr(SentenceLength, "__call__", lambda self, input_ids, scores: scores)
    side = tiny_sides()[0]
    with pytest.raises(RuntimeError, match="backbone did not write 8 tokens in sentences of 4"):
        write(side, random_text(1, 8, 4, 300), 4, 8, Clock(side.model))


def test_sentences_close_whatever_the_model_says():
    """A model that always wants to close, or to end the text, is kept from it, and one that never does is made to."""
    closing = SentenceLength(4, [BOUNDARY, 0], torch.device("cpu"))
    scores = torch.zeros(2, 10)
    scores[:, [0, BOUNDARY]] = 9.0
    for length in range(8):
        chosen = closing(torch.zeros(2, length, dtype=torch.long), scores).argmax(-1)
        assert (chosen == BOUNDARY).all() if length % 4 == 3 else not torch.isin(chosen, torch.tensor([0, 2])).any()
    closing(torch.zeros(2, 3, dtype=torch.long), -scores)
    assert scores[0, 0] == 9.0, "the loop's own logits are changed"


def test_the_sllm_runs_its_backbone_once_for_each_sentence_measured():
    backbone, sllm = tiny_sides()
    assert sllm.options == {"max_sentences": math.inf}, "it writes by the token loop"
    calls = []
    sllm.model.model.language_model.register_forward_hook(lambda *_: calls.append("sllm"))
    backbone.model.model.register_forward_hook(lambda *_: calls.append("backbone"))
    for side in (backbone, sllm):
        write(side, random_text(2, 16, 4, 300), 4, 12, Clock(side.model))
    # The prefill, and what follows upon each token or sentence but the last.
    assert calls == ["backbone"] * 12 + ["sllm"] * 3


def test_the_prefill_is_the_first_forward_pass_and_precedes_the_first_token():
    for side in tiny_sides():
        clock = Clock(side.model)
        step = side.model.forward
        hooks = []

        def forward(*args, step=step, hooks=hooks, model=side.model, **kwargs):
            hooks.append(len(model._forward_hooks))
            return step(*args, **kwargs)

        side.model.forward = forward
        write(side, random_text(1, 8, 4, 300), 4, 8, clock)
        assert hooks[0] == 1 and not any(hooks[1:]), "the steps are hooked too"
        marks = ["begins", "prefill begins", "prefill ends", *range(9, 17)]
        assert list(clock.marks) == marks
        times = list(clock.marks.values())
        assert times == sorted(times)
        assert not side.model._forward_hooks and not side.model._forward_pre_hooks


def test_every_figure_is_taken_in_every_run():
    runs, again = (measure_generation(tiny_sides(), random_text(2, 16, 4, 300), 4, 8, runs=2) for _ in range(2))
    assert [figures.peak_bytes for figures in runs] == [figures.peak_bytes for figures in again]
    for figures in runs:
        assert len(figures.prefill_seconds) == len(figures.first_sentence_seconds) == 2
        assert len(figures.tokens_per_second) == 2
        assert figures.cache_bytes > 0 and figures.peak_bytes > figures.cache_bytes


def test_the_backbones_cache_is_counted_exactly():
    side = tiny_sides()[0]
    figures = measure_generation([side], random_text(3, 16, 4, 300), 4, 8, runs=1)[0]
    # Keys and values of 4 layers, 32 wide, in float32, for each token.
    assert figures.cache_bytes == 3 * 16 * 2 * 4 * 32 * 4


def test_the_sllms_cache_is_counted_exactly():
    sllm = tiny_sides()[1].model

    @torch.no_grad()
    def cache_after(length):
        token_ids = random_text(3, length, 4, 300)
        return sllm(token_ids, use_cache=True, logits_to_keep=1).past_key_values

    entry = 2 * 4 * 32 * 4  # keys and values of the backbone's 4 layers, 32 wide, in float32
    assert bytes_held(cache_after(16).language_model) == 3 * (1 + 4) * entry  # the start, and 4 sentences
    # What grows with the text: entries and their numbers; ids of the tokens, and two marks. The rest is bounded.
    grown = bytes_held(cache_after(2048)) - bytes_held(cache_after(1024))
    assert grown == 3 * (256 * (entry + 8) + 1024 * (8 + 1 + 1))


def test_a_view_holds_all_of_its_tensor_and_no_tensor_counts_twice():
    class Holder:
        def __init__(self):
            whole = torch.zeros(10, 4)
            self.parts = {"row": whole[:1], "again": [whole]}
            self.apart = torch.zeros(3, dtype=torch.long)
            self.itself = self
            self.model = torch.nn.Linear(5, 5)

    assert bytes_held(Holder()) == 10 * 4 * 4 + 3 * 8


def test_peak_memory_is_the_most_alive_at_one_time():
    model = torch.nn.Linear(8, 100, bias=False)
    with PeakMemory(model, torch.device("cpu")) as peak, torch.no_grad():
        for _ in range(3):
            states = model(torch.zeros(10, 8))  # 320 + 4000 bytes, and of the turn before 4000
            states = states.view(100, 10)[:50]
    assert peak.bytes == 320 + 4000 + 4000


def test_the_weights_read_are_those_that_a_token_or_a_sentence_uses():
    backbone, sllm = (side.model for side in tiny_sides())
    bare, wrapped = weights_read(backbone), weights_read(sllm)
    # Tied embeddings are the LM head too, so they are read once.
    assert bare.each_token == 4 * backbone.num_parameters() and bare.each_sentence == 0
    assert wrapped.each_token == 4 * (300 * 32 + sum(map(torch.numel, sllm.model.sentence_decoder.parameters())))
    # The start latents are among the sentence's.
    assert wrapped.each_token + wrapped.each_sentence == 4 * sllm.num_parameters()
    assert wrapped.read_for_token(2, 4, 800) == wrapped.each_token / 2 + (wrapped.each_sentence / 2 + 800) / 4
    assert bare.read_for_token(2, 4, 800) == bare.each_token / 2 + 800
    # Lists of 30 of the 300 tokens, one for each row, are guessed from 32 directions: here from the whole head.
    fit_shortlist(sllm)
    listed, head = weights_read(sllm, 30), 4 * 300 * 32
    assert listed.each_token == wrapped.each_token + 4 * 32 * 32 and listed.each_sentence == wrapped.each_sentence
    assert listed.read_for_token(2, 4, 0) == listed.each_token / 2 + head / 10 + listed.each_sentence / 8


def test_the_bandwidth_is_a_positive_number():
    assert 0 < memory_bandwidth(torch.device("cpu"), torch.bfloat16, size=2**20, repeats=1) < math.inf


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_the_command_saves_all_figures_of_both_sides(preset, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_sllm.benchmark.run.memory_bandwidth", lambda device, dtype: 1e9)
    command = ["bench", "generation", "tiny", "--context-lengths", "32,16", "--batch-sizes", "2", "--runs", "2"]
    command += ["--sentence-length", "4", "--new-tokens", "8", "--output", str(tmp_path), "--preset", preset]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    for title in ("Figures", "How many times better", "Roofline"):
        assert title in result.stdout
    assert (tmp_path / "bench.png").stat().st_size > 0
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["settings"]["context_lengths"] == [32, 16] and found["settings"]["runs"] == 2
    assert found["settings"]["preset"] == preset
    assert found["bandwidth"] > 0 and found["threads"] >= 1 and set(found["parameters"]) == {"backbone", "SLLM"}
    cells = [(row["side"], row["context_length"], row["batch_size"]) for row in found["rows"]]
    assert cells == [("backbone", 16, 2), ("SLLM", 16, 2), ("backbone", 32, 2), ("SLLM", 32, 2)]
    for row in found["rows"]:
        figures = [value for value in row.values() if isinstance(value, float | int)]
        assert len(figures) == 9 and all(math.isfinite(value) and value > 0 for value in figures)
        assert all(len(times) == 2 for times in row["runs"].values()) and len(row["runs"]) == 3
        assert len(row["ratios"]) == (5 if row["side"] == "backbone" else 0)


def test_each_option_of_the_command_reaches_the_benchmark(monkeypatch):
    given = []

    def stop(settings, keep):
        given.append(settings)
        raise ValueError("enough")

    monkeypatch.setattr("hf_sllm.benchmark.benchmark_generation", stop)
    expected = {
        "context_lengths": [32, 16], "batch_sizes": [2], "sentence_length": 4, "new_tokens": 24, "decoder_layers": 3,
        "preset": "paper", "dtype": "float16", "shortlist": 9, "sentences_at_once": 2, "runs": 7,
    }  # fmt: skip
    command = ["bench", "generation", "tiny", "--compiled"]
    for name, value in expected.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        command += [f"--{name.replace('_', '-')}", text]
    assert CliRunner().invoke(app, command).exit_code == 1
    expected["shortlist_size"] = expected.pop("shortlist")
    assert given == [Settings("tiny", compiled=True, **expected)]


def test_several_sentences_at_once_are_timed_in_whole_rounds():
    torch.manual_seed(0)
    backbone, sllm = make_pair("tiny", 4, decoder_layers=1, next_latent_weight=1.0)
    sides = make_sides(backbone.eval(), sllm.eval(), sentences_at_once=2)
    calls = []
    sllm.model.sentence_encoder.register_forward_hook(lambda *_: calls.append(1))
    figures = measure_generation(sides, random_text(1, 16, 4, 300), 4, 16, runs=1)[-1]
    # Of two rounds of two sentences, the second one's sentences are timed.
    assert figures.tokens_per_second[0] > 0 and figures.first_sentence_seconds[0] > 0
    assert len(calls) == 2 * 2 + 2  # each time the prompt and the first round are encoded
    whole, shared = weights_read(sllm), weights_read(sllm, sentences_at_once=2)
    assert (shared.each_token, shared.each_sentence) == (whole.each_token // 2, whole.each_sentence)


@pytest.mark.slow
def test_the_compiled_baseline_runs_compiled_code_with_a_static_cache():
    sides = tiny_sides(compiled=True)
    figures = measure_generation(sides, random_text(1, 16, 4, 300), 4, 8, runs=1)
    assert [side.name for side in sides] == ["backbone", "backbone, compiled", "SLLM"]
    assert hasattr(sides[1].model, "_compiled_call")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    # The static cache is made for all that is fed, the last token is not; each layer counts its entries in a number.
    assert figures[1].cache_bytes == 4 * (2 * (16 + 8 - 1) * 32 * 4 + 8)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"context_lengths": [30]}, "`context_length` is 30: it must be a multiple of `sentence_length`, 16"),
        ({"new_tokens": 16}, "`new_tokens` is 16: it must be a multiple of `sentence_length`, 16, and at least 32"),
        ({"dtype": "int8"}, "`dtype` is 'int8': it must be one of bfloat16, float16, float32"),
        ({"sentences_at_once": 0}, "`sentences_at_once` is 0"),
        ({"sentences_at_once": 2}, "`batch_sizes` is .1, 8.: with `sentences_at_once`, 2, it must be 1"),
        ({"sentences_at_once": 3, "batch_sizes": [1]}, "`new_tokens` is 64: .* at least 96, in whole rounds of 48"),
        ({"batch_sizes": []}, r"`batch_sizes` is \[\]: it must have numbers of at least 1"),
        ({"runs": 0}, "`runs` is 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        benchmark_generation(Settings("tiny", **changes))


def test_predictors_write_and_predict_beside_the_backbone(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    command = "bench predictors tiny --context-length 16 --sentence-length 8 --sentences 2 --runs 1 --decoder-layers 1"
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.output
    rows = [line.split("│")[1:] for line in result.output.splitlines() if line.startswith("│")]
    assert [row[0].strip() for row in rows] == ["backbone", *PREDICTORS]
    # Neither a backbone nor an SLLM with a map reads its own predictions.
    assert [bool(row[3].strip()) for row in rows] == [False, False, True, True, True, True]


def test_fewer_than_two_sentences_are_not_timed():
    with pytest.raises(ValueError, match="`new_tokens` is 8: it must be a multiple of `sentence_length`, 8, and at"):
        measure_predictors("tiny", 16, 8, 1)
