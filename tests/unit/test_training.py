"""A recipe trains what it says, at the rates it says, and goes on where it stopped."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_sllm.training import SllmTrainer, load_recipe, train
from hf_sllm.training.recipe import RECIPES
from hf_sllm.training.trainer import SeededLengthGroupedSampler, is_new_part

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", sorted(file.stem for file in RECIPES.glob("*.yaml")))
def test_each_recipe_of_the_package_can_be_read(name, tmp_path):
    recipe = load_recipe(name, tmp_path)
    assert recipe.training.output_dir == str(tmp_path)
    assert isinstance(recipe.training.learning_rate, float)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"learning_rat": 1e-3}, "unknown key 'learning_rat': did you mean 'learning_rate'?"),
        ({"backbone": "somewhere"}, "has one of `backbone`, `backbone_config` and `sllm`"),
        ({"backbone_config": None}, "has one of `backbone`, `backbone_config` and `sllm`"),
        ({"stage": "sentence_vae", "sentence_vae": "somewhere"}, "this one has backbone_config and sentence_vae"),
        ({"stage": "sentence_vae", "lora": {"r": 2}}, "`lora` has no meaning in the stage `sentence_vae`"),
        ({"backbone_config": {"hidden_size": 8}}, "`backbone_config` has no `model_type`"),
        ({"tokenizer": "somewhere"}, "this one has both"),
        ({"tokenizer_vocab_size": None}, "from scratch needs a `tokenizer`"),
        ({"encoder_layers": "two"}, "`encoder_layers` is 'two'"),
        ({"train_data": None}, "no 'train_data'"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_with_the_reason(recipe_file, changes, message):
    with pytest.raises(ValueError) as error:
        load_recipe(recipe_file(**changes))
    assert message in str(error.value)


def test_a_field_that_the_model_does_not_have_is_refused(recipe_file):
    with pytest.raises(TypeError, match="SllmConfig has no field num_latent"):
        train(load_recipe(recipe_file(sllm_config={"num_latent": 2})))


def test_a_run_leaves_models_and_figures_that_can_be_read(recipe_file, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    results = train(load_recipe(recipe_file()))
    assert [result.name for result in results] == ["backbone trained", "SLLM"]
    assert results[0].tokens_seen == results[1].tokens_seen > 0
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [line["bits_per_byte"] for line in written] == [result.bits_per_byte for result in results]
    for folder, kind in ((tmp_path / "run", "sllm"), (tmp_path / "run" / "baseline", "llama")):
        assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == kind
        assert AutoTokenizer.from_pretrained(folder).eos_token == "</s>"


def test_training_lowers_bits_per_byte_of_both(recipe_file):
    recipe = recipe_file(max_steps=20, learning_rate=1e-2, new_parts_learning_rate=1e-2, save_strategy="no")
    assert all(result.bits_per_byte < 4.5 for result in train(load_recipe(recipe)))


def test_bfloat16_on_the_cpu_trains(recipe_file):
    results = train(load_recipe(recipe_file(bf16=True, max_steps=2)))
    assert all(result.bits_per_byte < 10 for result in results)


class Interruption(Exception):
    """Stands for a kill: nothing after it runs."""


@pytest.mark.parametrize("killed", ["backbone", "sllm"])
def test_a_run_that_is_killed_and_resumed_ends_at_the_weights_of_one_that_is_not(
    recipe_file, tmp_path, monkeypatch, killed
):
    # Dropout draws random numbers at each step, so that the random state has to come back too.
    noisy = {"token_dropout": 0.2, "latent_noise": 0.1}
    file = recipe_file(sllm_config=noisy, max_steps=8, baseline=killed == "backbone")
    expected = train(load_recipe(file, tmp_path / "whole"))

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 5 and ("Sllm" in type(model).__name__) == (killed == "sllm"):
                raise Interruption

    plain = SllmTrainer.__init__

    def with_kill(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        self.add_callback(Kill())

    with monkeypatch.context() as patch, pytest.raises(Interruption):
        patch.setattr(SllmTrainer, "__init__", with_kill)
        train(load_recipe(file, tmp_path / "killed"))
    found = train(load_recipe(file, tmp_path / "killed"), resume=True)

    for folder in ("", "baseline") if killed == "backbone" else ("",):
        whole = load_file(tmp_path / "whole" / folder / "model.safetensors")
        resumed = load_file(tmp_path / "killed" / folder / "model.safetensors")
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [(line.bits_per_byte, line.tokens_seen) for line in found] == [
        (line.bits_per_byte, line.tokens_seen) for line in expected
    ]


@pytest.mark.parametrize("key", ["max_steps", "num_train_epochs"])
def test_a_run_that_has_ended_goes_on_when_its_recipe_is_longer(recipe_file, tmp_path, key):
    def tokens_seen(length, resume=True):
        file = recipe_file(**{"baseline": False, "max_steps": -1, key: length})
        return train(load_recipe(file, tmp_path / "run"), resume)[-1].tokens_seen

    seen = tokens_seen(1, resume=False)
    assert tokens_seen(1) == seen < tokens_seen(2)
    for folder in (tmp_path / "run").glob("checkpoint-*"):
        shutil.rmtree(folder)
    with pytest.raises(ValueError, match=f"`{key}` is 3: .* ended at 2 and left no checkpoint"):
        tokens_seen(3)


def test_a_folder_that_holds_a_run_is_not_overwritten(recipe_file):
    recipe = load_recipe(recipe_file(max_steps=1, baseline=False))
    train(recipe)
    with pytest.raises(ValueError, match="already holds a run: go on with it by --resume"):
        train(recipe)


def test_new_parts_have_their_own_rate_and_embeddings_norms_and_biases_do_not_decay(recipe_file, monkeypatch):
    groups = {}

    def keep(self, *args, **kwargs):
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for group in self.create_optimizer().param_groups:
            groups.update(
                {names[id(parameter)]: (group["lr"], group["weight_decay"]) for parameter in group["params"]}
            )
        assert set(groups) == set(names.values())
        raise Interruption

    monkeypatch.setattr(SllmTrainer, "train", keep)
    recipe = recipe_file(
        baseline=False, learning_rate=1e-4, new_parts_learning_rate=1e-2, weight_decay=0.1,
        sllm_config={"stop_head": True},
    )  # fmt: skip
    with pytest.raises(Interruption):
        train(load_recipe(recipe))
    rates = {
        "model.language_model.layers.0.self_attn.q_proj.weight": (1e-4, 0.1),
        "model.language_model.layers.0.input_layernorm.weight": (1e-4, 0.0),
        "model.language_model.embed_tokens.weight": (1e-4, 0.0),
        "model.sentence_encoder.model.layers.0.mlp.up_proj.weight": (1e-4, 0.1),
        "model.sentence_encoder.latent_head.weight": (1e-2, 0.1),
        "model.sentence_encoder.latent_head.bias": (1e-2, 0.0),
        "model.sentence_encoder.latent_queries.weight": (1e-2, 0.0),
        "model.sentence_decoder.latent_prefix.weight": (1e-2, 0.1),
        "model.sentence_decoder.stop_head.weight": (1e-2, 0.1),
        "model.latent_input.weight": (1e-2, 0.1),
        "model.latent_output.bias": (1e-2, 0.0),
        "model.start_latents.weight": (1e-2, 0.0),
    }
    assert {name: groups[name] for name in rates} == rates


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_every_parameter_that_the_backbone_lacks_is_a_new_part(preset):
    from transformers import AutoConfig

    from hf_sllm import SllmConfig, SllmForCausalLM

    backbone = AutoConfig.for_model("llama", hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=32)
    make = SllmConfig.paper if preset == "paper" else SllmConfig.from_text_config
    config = make(backbone, encoder_layers=1, decoder_layers=1, boundary_token_ids=[3], stop_head=True)
    with torch.device("meta"):
        names = [name for name, _ in SllmForCausalLM(config).named_parameters()]
    transformers_own = (
        "model.language_model.", "model.sentence_encoder.model.", "model.sentence_decoder.model.", "lm_head.",
    )  # fmt: skip
    assert {name for name in names if is_new_part(name)} == {
        name for name in names if not name.startswith(transformers_own)
    }


def test_batches_hold_texts_of_similar_length_each_once_in_an_order_of_the_seed():
    lengths = torch.randint(5, 200, (103,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = SeededLengthGroupedSampler(lengths, batch_size=4, seed=1)
    order = list(sampler)
    assert sorted(order) == list(range(103))
    assert list(sampler) == order
    spread = [max(batch) - min(batch) for batch in zip(*[iter(lengths[i] for i in order)] * 4, strict=False)]
    assert sum(spread) / len(spread) < 0.2 * (max(lengths) - min(lengths))
    sampler.set_epoch(1)
    assert list(sampler) != order
    assert list(SeededLengthGroupedSampler(lengths, 4, seed=2)) != order


def test_the_order_of_examples_does_not_depend_on_what_the_model_draws(recipe_file, monkeypatch):
    seen = []
    plain = SllmTrainer.training_step

    def step(self, model, inputs, *args, **kwargs):
        seen.append((type(model).__name__, inputs["input_ids"].tolist()))
        torch.rand(7 if "Sllm" in type(model).__name__ else 1)
        return plain(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SllmTrainer, "training_step", step)
    train(load_recipe(recipe_file(max_steps=8)))
    assert [ids for name, ids in seen if "Sllm" in name] == [ids for name, ids in seen if "Sllm" not in name]
    epoch = len(seen) // 2 // 2
    assert seen[:epoch] != seen[epoch : 2 * epoch]
