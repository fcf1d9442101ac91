"""Recovery compares like with like: three models of the same tokens, a window that is one, and plain figures."""

import dataclasses
import io
import json
from types import SimpleNamespace

import pytest
import torch
import yaml
from models import option_model, random_ids
from rich.console import Console
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from hf_sllm.cli import app
from hf_sllm.data import BlockCollator, CastSettings, write_casts
from hf_sllm.evaluation.memory import changed_memory, of_another_text
from hf_sllm.training import load_recipe, run
from hf_sllm.training.recovery import (
    LINES,
    Recovery,
    check_comparable,
    detach_memory,
    print_recovery,
    recovery,
    token_level,
)

WINDOW = 6
SHAPE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
}


def console():
    return Console(record=True, width=160, file=io.StringIO())


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A recipe on a few casts, with an odd number of held-out ones, so that one is alone in its batch."""
    folder = tmp_path_factory.mktemp("casts")
    write_casts(folder, 24, 7, CastSettings(cast=2, words=2, sentences=3), progress=False)
    decoder = {"decoder_context_length": WINDOW, "sentence_decoder_config": SHAPE}
    values = {
        "backbone_config": SHAPE,
        "tokenizer_vocab_size": 300,
        "encoder_layers": 1,
        "sllm_config": {**decoder, "pooling": "parts", "memory": {"num_layers": 1}},
        "train_data": str(folder / "casts.train.jsonl.gz"),
        "valid_data": str(folder / "casts.valid.jsonl.gz"),
        "block_size": 128,
        "output_dir": str(folder / "run"),
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def trained(file):
    """One seed: what was found, what was printed, what each model was trained on, and the folder."""
    collators = []

    class Recorded(BlockCollator):
        def __init__(self, *args):
            super().__init__(*args)
            self.batches = []
            collators.append(self)

        def __call__(self, blocks):
            batch = super().__call__(blocks)
            self.batches.append(batch["input_ids"].tolist())
            return batch

    recipe, shown = load_recipe(file), console()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "BlockCollator", Recorded)
        (found,) = recovery(recipe, [3], console=shown)
    return SimpleNamespace(
        found=found,
        printed=shown.export_text(),
        batches=[collator.batches for collator in collators],
        folder=file.parent / "run",
    )


def test_the_three_models_are_trained_on_the_same_tokens_in_the_same_order(trained):
    full, window, sllm = trained.batches
    assert len(full) >= 3 and full == window == sllm
    summaries = [
        json.loads((trained.folder / "seed-3" / name / "training.json").read_text())
        for name in ("full", "window", "sllm")
    ]
    assert {summary["tokens_seen"] for summary in summaries} == {trained.found.tokens_seen}
    assert {summary["seed"] for summary in summaries} == {3}


def test_the_token_level_models_have_the_decoders_shape_and_the_tokenizers_vocabulary(trained):
    """A decoder's own config may say nothing of the vocabulary, for it reads the backbone's embeddings."""
    configs = [
        json.loads((trained.folder / "seed-3" / name / "config.json").read_text())
        for name in ("full", "window", "sllm")
    ]
    tokenizer = AutoTokenizer.from_pretrained(trained.folder)
    decoder = configs[2]["sentence_decoder_config"]
    assert decoder["vocab_size"] != len(tokenizer)
    for config in configs[:2]:
        same = set(SHAPE) - {"model_type"}
        assert {name: config[name] for name in same} == {name: decoder[name] for name in same}
        assert config["vocab_size"] == len(tokenizer)
        assert config["eos_token_id"] == tokenizer.eos_token_id
    assert trained.found.parameters[0] == trained.found.parameters[1]


def test_the_window_is_the_decoders_and_full_context_is_all_there_is(trained, file):
    arguments, tokenizer = load_recipe(file).model, AutoTokenizer.from_pretrained(trained.folder)
    token_ids = random_ids(1, 30)
    for full_context, seen in ((False, WINDOW + 1), (True, 30)):
        model = token_level(arguments, tokenizer, full_context).eval()
        embeds = model.get_input_embeddings()(token_ids).detach().requires_grad_()
        model(inputs_embeds=embeds).logits[0, -1].square().sum().backward()
        assert embeds.grad[0].abs().sum(-1).nonzero().squeeze(1).tolist() == list(range(30 - seen, 30))


@torch.no_grad()
def test_of_a_pretrained_backbone_the_token_level_models_are_that_backbone(trained, file, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(trained.folder)
    backbone = LlamaForCausalLM(LlamaConfig(**SHAPE, vocab_size=len(tokenizer), rope_theta=300.0)).eval()
    backbone.save_pretrained(tmp_path)
    arguments = dataclasses.replace(
        load_recipe(file).model, backbone_config=None, tokenizer_vocab_size=None, backbone=str(tmp_path)
    )
    check_comparable(arguments)
    token_ids = random_ids(1, 30)
    full, window = (token_level(arguments, tokenizer, full_context).eval() for full_context in (True, False))
    torch.testing.assert_close(full(token_ids).logits, backbone(token_ids).logits)
    torch.testing.assert_close(window(token_ids).logits[:, : WINDOW + 1], full(token_ids).logits[:, : WINDOW + 1])
    alone = window(token_ids[:, -WINDOW - 1 :]).logits[0, -1]  # one layer sees its window and no more
    torch.testing.assert_close(window(token_ids).logits[0, -1], alone, rtol=1e-4, atol=1e-4)
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=10)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`backbone.model_type` is 'gpt2': recovery needs a llama .* Give another"):
        check_comparable(arguments)


def test_what_is_printed_is_in_the_file(trained):
    (kept,) = json.loads((trained.folder / "recovery.json").read_text())
    assert kept["recovery"] == kept["recovered"]["sllm"]
    assert kept["headroom"] == kept["window"] - kept["full"]
    assert 0 < kept["floor"] < kept["forgets"]
    table, facts = trained.printed.split("nats of a word")
    rows = {line[:26].strip(): line[26:].split() for line in table.splitlines()}
    unit = kept["nats_per_bit_of_a_byte"]
    for name, label in (("floor", "floor: remembers"), ("forgets", "floor: forgets")):
        assert rows[label] == [f"{kept[name] * unit:.4f}", f"{kept[name]:.4f}"]
    for number, (name, label) in enumerate(LINES.items()):
        if name == "detached":  # none was trained
            assert label not in rows and kept[name] is None
            continue
        share = kept["recovered"][name]
        shown = ["–", "–"] if share is None else [f"{share:.1%}", f"{share:.0%}"]
        parameters = [f"{kept['parameters'][number]:,}"] if number < 3 else []
        assert rows[label] == [
            f"{kept[name]:.4f}", f"{kept['bits_per_byte'][name]:.4f}", *shown, *parameters,
        ]  # fmt: skip
        (line,) = (line for line in facts.splitlines() if line.strip().startswith(label + " "))
        expected = [f"{group['nats']:.3f} ({group['known']:.0%})" for group in kept["facts"][name]]
        assert line.strip().removeprefix(label).split() == " ".join(expected).split()


def test_the_command_resumes_without_training_again(trained, file):
    weights = sorted(trained.folder.rglob("model.safetensors"))
    written, figures = [path.stat().st_mtime_ns for path in weights], (trained.folder / "recovery.json").read_text()
    assert len(weights) == 3
    refused = CliRunner().invoke(app, ["recovery", str(file), "--seed", "3"])
    assert refused.exit_code == 1
    assert "is not empty: go on with it by --resume, or give another --output-dir" in refused.output
    done = CliRunner().invoke(app, ["recovery", str(file), "--seed", "3", "--resume"])
    assert done.exit_code == 0, done.output
    assert [path.stat().st_mtime_ns for path in weights] == written
    assert (trained.folder / "recovery.json").read_text() == figures


def test_what_another_recipe_trained_is_not_taken_for_this_ones(trained, file):
    changes = {"sllm_config": {"sentence_decoder_config": {**SHAPE, "intermediate_size": 40}}}
    with pytest.raises(ValueError, match=r"seed-3/full holds a model of [\d,]+ parameters.*: delete the folder"):
        recovery(load_recipe(file, changes=changes), [3], resume=True, console=console())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sllm": "some/model", "backbone_config": ..., "tokenizer_vocab_size": ..., "encoder_layers": ...},
         "`sllm` is 'some/model': .*new models.*: leave it out, and give `backbone_config` or `backbone`"),
        ({"freeze": ["language_model"]}, r"`freeze` is \['language_model'\]: .* leave it out"),
        ({"lora": {"r": 2}}, r"`lora` is \{'r': 2\}: .* leave it out"),
        ({"stage": "sentence_vae"}, "`stage` is 'sentence_vae': .* make it `sllm`"),
        ({"sllm_config": {"decoder_context_length": 0}}, "`decoder_context_length` is 0: .* Give one above 0"),
        ({"sllm_config": {"sentence_decoder_config": {**SHAPE, "model_type": "qwen3"}}},
         "`sentence_decoder_config.model_type` is 'qwen3': recovery needs a llama"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_before_anything_is_written(file, tmp_path, changes, message):
    left_out = [name for name, value in changes.items() if value is ...]
    values = {name: value for name, value in yaml.safe_load(file.read_text()).items() if name not in left_out}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    changes = {name: value for name, value in changes.items() if name not in left_out}
    recipe = load_recipe(tmp_path / "recipe.yaml", tmp_path / "out", changes)
    with pytest.raises(ValueError, match=message):
        recovery(recipe, [0], console=console())
    assert not (tmp_path / "out").exists()


FIGURES = Recovery(
    seed=0, full=1.0, window=1.2, sllm=1.05, another_memory=1.3, newest_only=1.1, nats_per_bit_of_a_byte=2.0,
    tokens_seen=10, minutes=[1, 1, 1], parameters=[5, 5, 9],
)  # fmt: skip
NO_BOUNDS = {"floor": None, "forgets": None}


def test_recovery_is_the_share_of_the_windows_loss_that_is_won_back():
    assert FIGURES.recovered(FIGURES.sllm) == pytest.approx(0.75)
    assert FIGURES.recovered(FIGURES.another_memory) == pytest.approx(-0.5)
    assert (FIGURES.recovered(FIGURES.window), FIGURES.recovered(FIGURES.full)) == (0, 1)


def test_of_a_detached_memory_no_gradient_reaches_what_is_written():
    gradients = []
    for model in (option_model("memory"), detach_memory(option_model("memory"))):
        model.model.latent_output.weight.data.zero_()  # nothing comes by the backbone
        model(random_ids(2, 40), labels=random_ids(2, 40)).loss.backward()
        encoder = model.model.sentence_encoder.latent_head.weight.grad
        gradients.append(0.0 if encoder is None else float(encoder.abs().sum()))
        assert model.model.memory.layers[0].key_value.weight.grad.abs().sum() > 0
    assert gradients[0] > 0 and gradients[1] == 0
    with pytest.raises(ValueError, match="`memory` is None: there is none to detach"):
        detach_memory(option_model("default"))


def test_where_the_floor_is_known_the_share_of_all_that_could_be_won_back_is_told():
    shown = console()
    print_recovery([FIGURES], {"floor": 0.45, "forgets": 0.65}, "texts", shown)
    printed = " ".join(shown.export_text().split())
    assert "Full context has gone 75% of the way from forgetting to the floor." in printed
    assert "the SLLM brings back 50% (50%)" in printed


@pytest.mark.parametrize("full, is_said", [(1.0, False), (1.19, False), (1.1901, True), (1.2, True), (1.3, True)])
def test_where_full_context_is_worth_next_to_nothing_it_is_said(full, is_said):
    shown = console()
    print_recovery([dataclasses.replace(FIGURES, full=full)], NO_BOUNDS, "texts", shown)
    printed = shown.export_text()
    said = f"Full context is worth {1.2 - full:.4f} nats per token here, less than 0.01: this text cannot show"
    assert (said in printed) is is_said
    assert ("75.0%" in printed) is (full == 1.0)


def test_a_share_of_nothing_is_no_number():
    none = dataclasses.replace(FIGURES, full=1.2)
    assert none.recovered(none.sllm) is None
    assert json.loads(json.dumps(none.to_dict(), allow_nan=False))["recovery"] is None
    shown = console()
    print_recovery([none, FIGURES], NO_BOUNDS, "texts", shown)
    assert "– 75%" in shown.export_text()


@torch.no_grad()
def test_a_text_alone_in_its_batch_reads_no_memory_as_that_of_another():
    """Not its own in another order, which has all that was said, and what is said later."""
    model, token_ids = option_model("memory"), random_ids(1, 60)
    model.model.latent_output.weight.data.zero_()  # nothing comes by the backbone
    far = model.model.segmenter.layout(token_ids, torch.ones_like(token_ids).bool()).token_sentence > 2
    token_ids[0, 0], other = 20, token_ids.clone()
    other[0, 0] = 21
    own, own_other = model(token_ids).logits[0, far], model(other).logits[0, far]
    with changed_memory(model, of_another_text):
        found, found_other = model(token_ids).logits[0, far], model(other).logits[0, far]
    assert not torch.allclose(own, own_other) and not torch.allclose(own, found)
    torch.testing.assert_close(found, found_other, rtol=1e-5, atol=1e-5)
