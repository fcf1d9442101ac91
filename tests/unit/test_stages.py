"""A recipe's stage says what is trained: a sentence VAE, an SLLM from one, adapters, or all but what is frozen."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

from hf_sllm.training import curves, load_recipe, train

DRAW = curves.draw_curves


@pytest.fixture
def run(recipe_file, tmp_path):
    """Trains by a changed tiny recipe into a folder of this name; returns the results and the folder."""

    def start(name="run", resume=False, **changes):
        changes = {"max_steps": 2, "baseline": False, **changes}
        return train(load_recipe(recipe_file(**changes), tmp_path / name), resume), tmp_path / name

    return start


def test_the_stage_sentence_vae_trains_and_measures_reconstruction(run):
    (result,), folder = run(stage="sentence_vae", max_steps=30, learning_rate=1e-2)
    assert AutoModel.from_pretrained(folder).config.model_type == "sentence_vae"
    assert result.bits_per_byte is None
    assert 0.1 < result.next_token_accuracy <= 1 and result.token_accuracy > 0 and result.exact_sentences is not None


def test_an_sllm_begins_with_the_encoder_and_decoder_of_its_sentence_vae(run):
    _, vae = run("vae", stage="sentence_vae", sllm_config={"latent_size": 24})
    _, folder = run("sllm", sentence_vae=str(vae), tokenizer=str(vae), tokenizer_vocab_size=None, max_steps=1,
                    learning_rate=0.0, new_parts_learning_rate=0.0)  # fmt: skip
    stage1, stage2 = load_file(vae / "model.safetensors"), load_file(folder / "model.safetensors")
    for name, value in stage1.items():
        if "embed_tokens" not in name:
            assert torch.equal(value, stage2[f"model.{name}"]), name
    table = "sentence_encoder.model.embed_tokens.weight"
    assert torch.equal(stage1[table], stage2["model.language_model.embed_tokens.weight"])


def test_a_sentence_vae_goes_on_from_a_trained_one_and_may_get_more_latents(run):
    _, first = run("first", stage="sentence_vae", sllm_config={"num_latents": 2})
    given = {"stage": "sentence_vae", "sentence_vae": str(first), "backbone_config": None, "encoder_layers": None,
             "decoder_layers": None, "tokenizer_vocab_size": None, "learning_rate": 0.0,
             "new_parts_learning_rate": 0.0}  # fmt: skip
    _, second = run("second", sllm_config={"num_latents": 4, "token_dropout": 0.5}, **given)
    before, after = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    queries = "sentence_encoder.latent_queries.weight"
    assert torch.equal(after.pop(queries), before.pop(queries).repeat_interleave(2, 0))
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    assert AutoModel.from_pretrained(second).config.token_dropout == 0.5
    for fields, error, message in (
        ({"num_latents": 3}, ValueError, "`num_latents` is 3, and the sentence VAE has 2"),
        ({"latent_size": 9}, ValueError, "`sentence_encoder.latent_head.weight` is of shape"),
        ({"num_latent": 4}, TypeError, "has num_latent, and SentenceVaeConfig no such field"),
    ):
        with pytest.raises(error, match=message):
            run("refused", sllm_config=fields, **given)


def test_lora_trains_adapters_of_the_backbone_and_all_around_it_and_resumes(run, monkeypatch):
    from hf_sllm.training.trainer import SllmTrainer

    trained = set()
    plain = SllmTrainer.create_optimizer

    def spy(self, *args):
        trained.update(name for name, parameter in self.model.named_parameters() if parameter.requires_grad)
        return plain(self, *args)

    monkeypatch.setattr(SllmTrainer, "create_optimizer", spy)
    results, folder = run(lora={"r": 2}, baseline=True, max_steps=4)
    of_backbone = {name for name in trained if "language_model" in name or "baseline" in name}
    assert of_backbone and all("lora_" in name for name in of_backbone)
    assert any("sentence_decoder.modules_to_save.default.model.layers.0" in name for name in trained)
    for path in (folder, folder / "baseline"):
        assert (path / "adapter_model.safetensors").exists() and not (path / "model.safetensors").exists()
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.model_type == "sllm"
    again, _ = run(lora={"r": 2}, baseline=True, max_steps=4, resume=True)
    assert [line.bits_per_byte for line in again] == [line.bits_per_byte for line in results]


def test_adapters_of_a_named_backbone_leave_its_weights_where_they_are(run, tmp_path):
    """What is measured on the way, on the model in memory, is what the saved one gives."""
    from models import tiny_backbone

    tokenizer = "hf_sllm/checkpoints/sllm-stories"
    backbone = tiny_backbone(vocab_size=2048)
    backbone.save_pretrained(tmp_path / "backbone")
    changes = {"backbone": str(tmp_path / "backbone"), "backbone_config": None, "tokenizer": tokenizer,
               "tokenizer_vocab_size": None, "lora": {"r": 2}, "max_steps": 4, "learning_rate": 1e-2}  # fmt: skip
    (before, *_, trained), folder = run(eval_strategy="steps", eval_steps=4, **changes)
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    (measured,) = (entry["eval_bits_per_byte"] for entry in log if "eval_bits_per_byte" in entry)
    assert trained.bits_per_byte == pytest.approx(measured, rel=1e-5)
    assert not list(folder.rglob("model.safetensors"))
    assert not (folder / "base").exists()
    assert (folder / "modeling_sllm.py").exists() and (folder / "token_losses.py").exists()
    whole = AutoModelForCausalLM.from_pretrained(folder)
    assert whole.config.backbone_origin is None


def test_what_is_frozen_stays_as_it_is_and_a_name_that_is_nowhere_is_refused(run):
    _, before = run("before", max_steps=1, learning_rate=0.0, new_parts_learning_rate=0.0)
    _, after = run("after", freeze=["language_model"], learning_rate=1e-2)
    before, after = (load_file(folder / "model.safetensors") for folder in (before, after))
    for name, value in before.items():
        frozen = "language_model" in name
        assert torch.equal(value, after[name]) == frozen, name
    with pytest.raises(ValueError, match="`freeze` names 'backbone', and the model has no module called that"):
        run("refused", freeze=["backbone"])


def test_a_trained_sllm_gets_a_memory_and_latents_of_another_kind_and_keeps_the_rest(tmp_path):
    from models import tiny_sllm

    from hf_sllm.training.open_trained import open_sllm

    tiny_sllm().save_pretrained(tmp_path)
    decoder = {"max_position_embeddings": 512}
    fields = {"num_latents": 3, "pooling": "parts", "memory": {}, "sentence_decoder_config": decoder}
    model = open_sllm(str(tmp_path), fields)
    before, after = load_file(tmp_path / "model.safetensors"), model.state_dict()
    after.pop("lm_head.weight")  # tied
    begun = {name for name, value in after.items() if name not in before or not torch.equal(value, before[name])}
    parts = ("memory", "start_latents", "latent_input", "latent_output", "latent_head", "state_gate")
    assert begun and all(any(part in name for part in parts) for name in begun)
    encoder = model.model.sentence_encoder
    assert torch.equal(encoder.latent_head.weight, torch.eye(32)) and encoder.state_gate.eq(0).all()
    config = model.config.sentence_decoder_config
    assert config.max_position_embeddings == 512 and config.num_hidden_layers == 2


def test_a_token_level_model_goes_on_beside_a_trained_sllm(run, recipe_file):
    _, first = run("first", baseline=True)
    given = {"backbone_config": None, "tokenizer_vocab_size": None, "encoder_layers": None, "decoder_layers": None,
             "sllm_config": None, "sllm": str(first)}  # fmt: skip
    baseline = {"baseline": True, "baseline_model": str(first / "baseline")}
    results, second = run("second", learning_rate=0.0, new_parts_learning_rate=0.0, **baseline, **given)
    assert [line.name for line in results] == ["SLLM before", "token-level model", "SLLM"]
    assert results[-1].ratio == pytest.approx(results[0].bits_per_byte / results[1].bits_per_byte)
    before, after = (load_file(folder / "baseline" / "model.safetensors") for folder in (first, second))
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    with pytest.raises(ValueError, match="`sllm` is trained already: give `baseline_model`"):
        load_recipe(recipe_file(baseline=True, **given))
    with pytest.raises(ValueError, match="`baseline_model` is .*: it goes on beside a trained `sllm`"):
        load_recipe(recipe_file(**{**baseline, "baseline": False}, **given))


@pytest.mark.parametrize("adapted", [True, False])
def test_a_trained_sllm_gets_a_head_for_shortlists_and_is_else_what_it_was(run, tmp_path, adapted):
    from models import tiny_backbone

    tokenizer = "hf_sllm/checkpoints/sllm-stories"
    tiny_backbone(vocab_size=2048).save_pretrained(tmp_path / "backbone")
    named = {"backbone_config": None, "tokenizer_vocab_size": None, "learning_rate": 1e-2,
             "encoder_layers": None, "decoder_layers": None}  # fmt: skip
    kind = {"lora": {"r": 2}} if adapted else {}
    _, first = run("first", backbone=str(tmp_path / "backbone"), tokenizer=tokenizer, **kind, **named)
    results, second = run(
        "second", sllm=str(first), freeze=["model"], sllm_config={"bag_of_words_weight": 1.0}, **named
    )
    if adapted:
        with pytest.raises(ValueError, match="`lora` makes adapters, and .* has its own"):
            run("refused", sllm=str(first), lora={"r": 2}, **named)
    assert [result.name for result in results] == ["SLLM before", "SLLM"]
    assert results[0].bits_per_byte == pytest.approx(results[1].bits_per_byte, rel=1e-6)
    file = "adapter_model.safetensors" if adapted else "model.safetensors"
    before, after = load_file(first / file), load_file(second / file)
    assert {name.split(".")[-2] for name in after.keys() - before.keys()} == {"shortlist_head"}
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    head = AutoModelForCausalLM.from_pretrained(second).shortlist_head
    weight = dict(head.named_parameters())["modules_to_save.default.weight" if adapted else "weight"]
    assert not torch.equal(weight, torch.eye(len(weight)))
    assert torch.equal(weight, next(value for name, value in after.items() if name.endswith("shortlist_head.weight")))


def test_streamed_documents_are_trained_on(run):
    (streamed,), _ = run("streamed", streaming=True, tokenizer="hf_sllm/checkpoints/sllm-stories",
                         tokenizer_vocab_size=None)  # fmt: skip
    assert streamed.tokens_seen > 0
    with pytest.raises(ValueError, match="give `max_steps`"):
        run("refused", streaming=True, max_steps=-1)


def test_curves_tell_loss_terms_and_figures_of_both_models_over_tokens(run, monkeypatch):
    monkeypatch.setattr(curves, "draw_curves", DRAW)
    changes = {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 1, "report_to": "tensorboard"}
    config = {"reconstruction_weight": 0.5}
    results, folder = run(baseline=True, max_steps=4, sllm_config=config, **changes)
    rows = list(csv.DictReader((folder / "curves.csv").open()))
    assert (folder / "curves.png").stat().st_size > 10_000
    assert any(folder.rglob("events.out.tfevents*"))
    for result in results:
        own = [row for row in rows if row["model"] == result.name]
        measured = [row for row in own if row["eval_bits_per_byte"]]
        assert [row["step"] for row in measured] == ["2", "4"]
        assert float(measured[-1]["eval_bits_per_byte"]) == pytest.approx(result.bits_per_byte, rel=1e-5)
        assert [row["step"] for row in own if row["loss"]] == ["1", "2", "3", "4"]
        assert int(own[-1]["tokens"]) == result.tokens_seen
    sllm = [row for row in rows if row["model"] == "SLLM" and row["loss"]]
    for row in sllm:
        total = float(row["loss_next_sentence"]) + 0.5 * float(row["loss_reconstruction"])
        assert total == pytest.approx(float(row["loss"]), rel=1e-3)


def test_the_kl_term_warms_up(run, monkeypatch):
    from hf_sllm import SllmForCausalLM

    scales = []
    plain = SllmForCausalLM.weighted_sum

    def spy(self, losses):
        if "kl" in losses:
            scales.append(self.kl_scale)
        return plain(self, losses)

    monkeypatch.setattr(SllmForCausalLM, "weighted_sum", spy)
    run(sllm_config={"kl_weight": 0.1}, kl_warmup_steps=4, max_steps=6)
    assert scales == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_the_summary_of_a_run_tells_the_ratio_to_its_baseline(run):
    results, folder = run(baseline=True, baseline_config={"num_hidden_layers": 3})
    assert [line.name for line in results] == ["token-level model", "SLLM"]
    assert results[1].ratio == results[1].bits_per_byte / results[0].bits_per_byte
    assert json.loads((folder / "baseline" / "config.json").read_text())["num_hidden_layers"] == 3
