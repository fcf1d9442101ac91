"""A frontier is fair: each model has its best learning rate, and which ones no other beats is found right."""

import io
import json
import math
from types import SimpleNamespace

import pytest
import torch
import yaml
from models import BACKBONES, random_ids
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from hf_sllm.benchmark.side_by_side import measure_side_by_side
from hf_sllm.benchmark.training import training_flops
from hf_sllm.cli import app
from hf_sllm.data import CastSettings, load_documents, write_casts
from hf_sllm.evaluation import bits_per_byte
from hf_sllm.training import frontier as module
from hf_sllm.training.frontier import FRONTIERS, frontier, read_plan
from hf_sllm.training.frontier_points import Point, beats, best_rate, mark_unbeaten, print_points
from hf_sllm.training.trainer import SllmTrainer

SHAPE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
RATES = [1.0, 1e-2]  # the first one is worse
WINDOW = "token-level, 2 layers, window 6"
NAMES = ["token-level, 1 layer", WINDOW, "SLLM"]


def console():
    return Console(record=True, width=160, file=io.StringIO())


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A frontier file, and its recipe on a few casts."""
    folder = tmp_path_factory.mktemp("casts")
    write_casts(folder, 24, 7, CastSettings(cast=2, words=2, sentences=3), progress=False)
    recipe = {
        "backbone_config": SHAPE,
        "tokenizer_vocab_size": 300,
        "encoder_layers": 1,
        "sllm_config": {"decoder_context_length": 6, "sentence_decoder_config": SHAPE},
        "train_data": str(folder / "casts.train.jsonl.gz"),
        "valid_data": str(folder / "casts.valid.jsonl.gz"),
        "block_size": 128,
        "output_dir": str(folder / "unused"),
        "max_steps": 3,
        "learning_rate": 1e-3,
        "new_parts_learning_rate": 2e-3,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    values = {
        "recipe": str(folder / "recipe.yaml"),
        "learning_rates": RATES,
        "token_level": [{"num_hidden_layers": 1}, {"num_hidden_layers": 2, "window": 6}],
        "sllm": [{"name": "SLLM", "sllm_config": {"num_latents": 1}}],
    }
    path = folder / "frontier.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module", autouse=True)
def short():
    """Short texts to time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CONTEXT_LENGTHS", (32, 64))
        patch.setattr(module, "NEW_TOKENS", 34)
        yield


@pytest.fixture(scope="module")
def measured(file):
    """Two seeds: what was found, what was printed, the folder, and how many trainings there were."""
    shown, folder, trainings, train = console(), file.parent / "run", [], SllmTrainer.train

    def counted(self, **kwargs):
        trainings.append(self.args.output_dir)
        return train(self, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SllmTrainer, "train", counted)
        points = frontier(file, folder, [3, 4], console=shown)
    return SimpleNamespace(points=points, printed=shown.export_text(), folder=folder, trainings=trainings)


def halves_of(file):
    """The held-out texts with even numbers, and those with odd ones."""
    recipe = read_plan(file, file.parent / "run").recipe
    rows = list(load_documents(recipe.data.valid_data))
    return [rows[i] for i in (0, 2, 4, 6)], [rows[i] for i in (1, 3, 5)]


def test_the_rate_is_chosen_on_one_half_and_the_figure_is_of_the_other(measured, file):
    choosing, reported = halves_of(file)
    for point in measured.points:
        bits = {}
        for rate in RATES:
            folder = measured.folder / point.name / "seed-3" / f"rate-{rate:g}"
            model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
            bits[rate] = [
                bits_per_byte(model, tokenizer, rows, 2, False).bits_per_byte for rows in (choosing, reported)
            ]
        assert point.chosen_by == pytest.approx({rate: both[0] for rate, both in bits.items()})
        assert point.learning_rate == min(RATES, key=lambda rate: bits[rate][0]) != RATES[0]
        assert point.bits_per_byte[3] == pytest.approx(bits[point.learning_rate][1])
        assert point.bits_per_byte[3] != pytest.approx(bits[point.learning_rate][0])


def test_a_rate_whose_training_diverged_is_not_chosen():
    assert best_rate({1.0: math.nan, 0.1: 2.0, 0.01: 3.0}) == 0.1


def test_all_models_see_the_same_tokens_and_a_further_seed_trains_only_the_best_rate(measured):
    assert [point.name for point in measured.points] == NAMES
    assert len({point.tokens_seen for point in measured.points}) == 1
    assert len(measured.trainings) == len(set(measured.trainings)) == len(NAMES) * (len(RATES) + 1)
    for point in measured.points:
        folders = [folder.name for folder in (measured.folder / point.name / "seed-4").iterdir()]
        assert folders == [f"rate-{point.learning_rate:g}"]
        assert set(point.bits_per_byte) == {3, 4}


def test_each_training_has_its_rates_and_its_model_its_shape(measured):
    for name in NAMES:
        for rate in RATES:
            folder = measured.folder / name / "seed-3" / f"rate-{rate:g}"
            settings = torch.load(folder / "training_args.bin", weights_only=False)
            assert (settings.learning_rate, settings.new_parts_learning_rate) == (rate, pytest.approx(2 * rate))
            config = json.loads((folder / "config.json").read_text())
            if name == "SLLM":
                assert config["num_latents"] == 1 and config["decoder_context_length"] == 6
            else:
                shape = (config["num_hidden_layers"], config["sliding_window"], config["hidden_size"])
                assert shape == ((2, 7, 32) if name == WINDOW else (1, None, 32))


def test_what_was_found_is_written_printed_and_drawn(measured):
    kept = json.loads((measured.folder / "frontier.json").read_text())
    assert 0 < kept["floor"] < min(point.median_bits for point in measured.points)
    lines = measured.printed.split("writing after")[0].splitlines()
    drawn = (measured.folder / "frontier.svg").read_text()
    for point, values in zip(measured.points, kept["points"], strict=True):
        assert values["name"] == point.name
        assert values["bits_per_byte"] == {str(seed): bits for seed, bits in point.bits_per_byte.items()}
        assert set(values["unbeaten"]) == set(values["cache_bytes_per_token"]) == {"32", "64"}
        assert point.sentence_length == (9 if point.kind == "sllm" else 16)
        assert f"  {point.name}: " in drawn
        (cells,) = [line.split(point.name)[1].split() for line in lines if line.strip().startswith(f"{point.name}  ")]
        assert cells == [
            f"{point.median_bits:.4f}", *(f"{bits:.4f}" for bits in point.bits_per_byte.values()),
            f"{point.learning_rate:g}", f"{point.parameters:,}", f"{point.training_flops:.2e}",
        ]  # fmt: skip
    assert "writing after 32 tokens" in measured.printed and "writing after 64 tokens" in measured.printed


def test_a_resumed_run_trains_nothing_and_finds_the_same(measured, file, monkeypatch):
    written = (measured.folder / "frontier.json").read_text()
    refused = CliRunner().invoke(app, ["frontier", str(file), "--output-dir", str(measured.folder)])
    assert refused.exit_code == 1
    assert "already holds models: go on by --resume, or give another --output-dir" in " ".join(refused.output.split())

    def train(self, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(SllmTrainer, "train", train)
    command = ["frontier", str(file), "--output-dir", str(measured.folder), "--seed", "3", "--seed", "4", "--resume"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    timed = ("tokens_per_second", "unbeaten")
    before, after = (
        [{key: value for key, value in point.items() if key not in timed} for point in json.loads(text)["points"]]
        for text in (written, (measured.folder / "frontier.json").read_text())
    )
    assert before == after


def test_results_are_there_after_each_model(measured, file, monkeypatch):
    """The last model is trained no more; what is known of those before it is in the file."""
    load, (first, second, _) = module.load_trained, measured.points

    def stop_at_the_last(folder, stage):
        if folder.parents[1].name == "SLLM":
            raise KeyboardInterrupt
        return load(folder, stage)

    monkeypatch.setattr(module, "load_trained", stop_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        frontier(file, measured.folder, [3, 4], resume=True, console=console())
    kept = json.loads((measured.folder / "frontier.json").read_text())["points"]
    assert [point["name"] for point in kept] == [first.name, second.name]


def test_models_of_another_shape_are_not_taken_for_these(measured, file, tmp_path):
    changed = {**yaml.safe_load(file.read_text()), "token_level": [{"name": NAMES[0], "intermediate_size": 40}]}
    (tmp_path / "frontier.yaml").write_text(yaml.safe_dump(changed))
    with pytest.raises(ValueError, match=r"rate-1 holds a model of [\d,]+ parameters.*: delete the folder"):
        frontier(tmp_path / "frontier.yaml", measured.folder, [3], resume=True, console=console())


@pytest.mark.parametrize(
    "costs, other, expected",
    [
        ((1, -9, 5), (2, -8, 6), True),  # better in all
        ((1, -9, 5), (1, -9, 6), True),  # better in one, as good in the others
        ((1, -9, 5), (1, -9, 5), False),  # the same
        ((1, -9, 5), (2, -10, 6), False),  # slower
        ((1, -9, 5), (2, -8, 4), False),  # keeps more
        ((1, -9, 5), (math.nan, -9, 5), True),
        ((math.nan, -10, 4), (1, -9, 5), False),
        ((math.nan, -9, 5), (math.nan, -9, 5), False),
    ],
)
def test_a_model_beats_another_one_if_it_is_nowhere_worse_and_somewhere_better(costs, other, expected):
    assert beats(costs, other) is expected


def point(name, bits, speed, cache):
    return Point(name, "sllm", 1, 1.0, 1, {}, {1.0: 1.0, 2.0: 2.0}, 1.0, bits, 8, speed, cache)


def test_what_no_other_beats_is_found_for_each_length_and_each_seed():
    points = [
        point("best", {0: 1.0, 1: 3.0}, {8: 50.0, 16: 50.0}, {8: 9.0, 16: 9.0}),
        point("same as best", {0: 1.0, 1: 3.0}, {8: 50.0, 16: 50.0}, {8: 9.0, 16: 9.0}),
        point("fast", {0: 2.0, 1: 2.0}, {8: 60.0, 16: 40.0}, {8: 9.0, 16: 9.0}),
        point("small", {0: 2.0, 1: 2.0}, {8: 40.0, 16: 40.0}, {8: 9.0, 16: 1.0}),
    ]
    mark_unbeaten(points)
    assert [found.unbeaten for found in points] == [
        {8: [0], 16: [0, 1]},
        {8: [0], 16: [0, 1]},
        {8: [0, 1], 16: []},
        {8: [], 16: [0, 1]},
    ]
    assert [found.is_unbeaten(16) for found in points] == [True, True, False, True]
    shown = console()
    print_points(points, None, "texts", shown)
    said = shown.export_text()
    assert "best: the best learning rate is the lowest that was tried, 1." in said
    assert "1 of 2" in said and "2 of 2" in said and "0 of 2" in said


def test_flops_are_those_of_all_matrix_products():
    """6 for each weight of a matrix and each token, and 12 for each unit of each layer and each pair of positions."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**BACKBONES["llama"], vocab_size=61))
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
    assert training_flops(model, random_ids(1, 40)) == 6 * weights * 40 + 12 * 3 * 32 * 40**2
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_cache_of_a_window_holds_the_window_alone():
    """Right after the context was read it is a view of all of it. What is read are whole sentences."""
    shape = {**BACKBONES["mistral"], "vocab_size": 61}
    configs = [AutoConfig.for_model(**{**shape, "sliding_window": window}) for window in (None, 8)]
    found = measure_side_by_side(configs, [8, 7], [64, 512], torch.device("cpu"), 16, runs=1, progress=False)
    each = 2 * 4 * 3 * 2 * 8  # key and value in float32, of 3 layers and 2 heads of 8
    assert [found[0][length].cache_bytes_per_token * length for length in (64, 512)] == [65 * each, 513 * each]
    held = [found[1][length].cache_bytes_per_token * (length - length % 7) for length in (64, 512)]
    assert held[0] == held[1] < 10 * each
    assert all(figures.tokens_per_second > 0 for by_length in found for figures in by_length.values())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sllms": []}, "has the keys .*: it must have learning_rates, .* token_level, and may have changes"),
        ({"learning_rates": []}, r"`learning_rates` is \[\]: it must be a list of numbers above 0"),
        ({"learning_rates": [1e-3, -1]}, r"`learning_rates` is \[0.001, -1\]: .* above 0"),
        ({"token_level": {"num_hidden_layers": 1}}, "`token_level` is .*: it must be a list of models"),
        ({"sllm": []}, r"`sllm` is \[\]: it must be a list of models"),
        ({"token_level": [{"num_layers": 1}]}, "`token_level` has a model with 'num_layers': it may have `name`"),
        ({"token_level": [{"window": 0}]}, "`window` is 0: it must be a number of tokens above 0; leave it out"),
        ({"sllm": [{"sllm_config": {}}]}, "`sllm` has a model with sllm_config: it must have `name`"),
        ({"sllm": [{"name": "x", "window": 3}]}, "with name, window: .* may have backbone_config"),
        ({"sllm": [{"name": "x"}, {"name": "x"}]}, "`name` is 'x': it must be one that no other model has"),
        ({"sllm": [{"name": "a/b"}]}, "`name` is 'a/b': .* a folder can have"),
        ({"changes": {"lora": {"r": 2}}}, r"`lora` is \{'r': 2\}: .* leave it out, and give `backbone_config`"),
        ({"changes": {"stage": "sentence_vae"}}, "`stage` is 'sentence_vae': .* make it `sllm`"),
        ({"changes": {"streaming": True}}, "`streaming` is true: .* Leave it out"),
        ({"changes": {"backbone_config": {"model_type": "qwen3"}}}, "model_type` is 'qwen3': .* needs a llama"),
        ({"changes": {"valid_limit": 1}}, "`valid_data` has 1 documents: .* give at least 2"),
        ({"sllm": [{"name": "x", "sllm_config": {"num_latents": 0}}]}, "x cannot be made: .*num_latents"),
        ({"token_level": [{"num_attention_heads": 5}]}, "heads 5 cannot be made: .*hidden size"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_any_training(file, tmp_path, changes, message, monkeypatch):
    (tmp_path / "frontier.yaml").write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))
    monkeypatch.setattr(module, "train_model", lambda *args: pytest.fail("trained"))
    with pytest.raises(ValueError, match=f"(?s){message}"):
        frontier(tmp_path / "frontier.yaml", tmp_path / "out", console=console())


@pytest.mark.parametrize("own", sorted(FRONTIERS.glob("*.yaml")), ids=lambda own: own.stem)
def test_the_packages_frontiers_can_be_read(own, tmp_path):
    plan = read_plan(own.stem, tmp_path)
    assert len(plan.learning_rates) == 3
    assert {variant.kind for variant in plan.variants} == {"token_level", "sllm"}
