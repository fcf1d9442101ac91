"""A checkpoint is read only if its weights are safetensors, whole, and fit its config; else its file is named."""

import json
import shutil

import pytest
import torch
from models import random_ids, tiny_backbone, tiny_sllm
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from hf_sllm.modeling import SllmConfig, SllmForCausalLM, validation_checkpoint

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One checkpoint, whole and in shards."""
    folder = tmp_path_factory.mktemp("saved")
    model = tiny_sllm()
    model.save_pretrained(folder / "whole")
    model.save_pretrained(folder / "shards", max_shard_size="100KB")
    return folder


def copy_of(saved, kind, tmp_path):
    shutil.copytree(saved / kind, tmp_path / kind)
    return tmp_path / kind


def pickled(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def without_weights(folder):
    (folder / WEIGHTS).unlink()


def cut(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])


def empty(folder):
    (folder / WEIGHTS).write_bytes(b"")


def reshaped(folder):
    weights = load_file(folder / WEIGHTS)
    save_file({**weights, "model.latent_input.weight": torch.zeros(3, 3)}, folder / WEIGHTS, {"format": "pt"})


def change_config(change):
    def act(folder):
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return act


def change_index(change):
    def act(folder):
        index = json.loads((folder / INDEX).read_text())
        text = change(index)
        (folder / INDEX).write_text(text if isinstance(text, str) else json.dumps(index))

    return act


def a_billion_rows(config):
    config["text_config"]["vocab_size"] = 10**9


def code_from_elsewhere(config):
    config["auto_map"]["AutoModelForCausalLM"] = "other/repo--modeling_sllm.SllmForCausalLM"


def weights_elsewhere(config):
    config["transformers_weights"] = "adapter_model.bin"


CASES = {
    "pickled": ("whole", pickled, r"pytorch_model\.bin"),
    "without weights": ("whole", without_weights, r"model\.safetensors"),
    "cut": ("whole", cut, r"model\.safetensors is damaged"),
    "empty": ("whole", empty, r"model\.safetensors is damaged"),
    "reshaped": ("whole", reshaped, r"model\.safetensors has 'model\.latent_input\.weight' of shape \(3, 3\)"),
    "a billion rows": ("whole", change_config(a_billion_rows), r"model\.safetensors has .* \(1000000000, 32\)"),
    "code from elsewhere": ("whole", change_config(code_from_elsewhere), r"config\.json has AutoModelForCausalLM"),
    "weights elsewhere": ("whole", change_config(weights_elsewhere), "`transformers_weights` is 'adapter_model.bin'"),
    "no JSON": ("shards", change_index(lambda index: "{"), rf"{INDEX} is no index"),
    "a list": ("shards", change_index(lambda index: "[1]"), rf"{INDEX} is no index"),
    "no map": ("shards", change_index(lambda index: index.pop("weight_map") and None), rf"{INDEX} is no index"),
    "a shard in another folder": (
        "shards",
        change_index(lambda index: index["weight_map"].update(x="../whole/model.safetensors")),
        rf"{INDEX} names the shard '\.\./whole",
    ),
    "a pickle for a shard": (
        "shards",
        change_index(lambda index: index["weight_map"].update(x="pytorch_model.bin")),
        rf"{INDEX} names the shard 'pytorch_model\.bin'",
    ),
    "a shard that is not there": (
        "shards",
        change_index(lambda index: index["weight_map"].update(x="model-9.safetensors")),
        r"model-9\.safetensors",
    ),
    "a tensor that no shard has": (
        "shards",
        change_index(lambda index: index["weight_map"].update(x=next(iter(index["weight_map"].values())))),
        rf"{INDEX} names 'x'",
    ),
}


@pytest.mark.parametrize("load", [AutoModelForCausalLM.from_pretrained, SllmForCausalLM.from_pretrained])
@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_that_cannot_be_trusted_is_refused_and_its_file_named(saved, tmp_path, name, load):
    kind, break_it, says = CASES[name]
    folder = copy_of(saved, kind, tmp_path)
    break_it(folder)
    with pytest.raises((ValueError, OSError), match=says):
        load(folder)


def test_an_index_too_long_to_be_one_is_not_parsed(saved, tmp_path, monkeypatch):
    folder = copy_of(saved, "shards", tmp_path)
    monkeypatch.setattr(validation_checkpoint, "MAX_INDEX_BYTES", 1000)
    monkeypatch.setattr(json, "load", None)
    with pytest.raises(ValueError, match=rf"{INDEX} has [\d,]+ bytes"):
        SllmForCausalLM.from_pretrained(folder)


def test_nobody_can_ask_for_the_pickle(saved, tmp_path):
    folder = copy_of(saved, "whole", tmp_path)
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="`use_safetensors` is False"):
        SllmForCausalLM.from_pretrained(folder, use_safetensors=False)


def test_an_adapter_that_is_pickled_or_broken_is_refused(saved, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = SllmForCausalLM.from_pretrained(saved / "whole")
    get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    file.write_bytes(content)
    torch.save(load_file(file), tmp_path / "adapter_model.bin")
    file.unlink()
    with pytest.raises(ValueError, match=r"without adapter_model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_backbone_that_adapters_name_is_refused_if_it_is_pickled(tmp_path):
    tiny_backbone().save_pretrained(tmp_path / "backbone")
    model = SllmForCausalLM.from_backbone(str(tmp_path / "backbone"), boundary_token_ids=[1])
    model.config.backbone_origin = model.backbone_origin
    model.config.save_pretrained(tmp_path / "adapters")
    config = SllmConfig.from_pretrained(tmp_path / "adapters")
    SllmForCausalLM.from_origin(config)
    pickled(tmp_path / "backbone")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin, a pickle"):
        SllmForCausalLM.from_origin(config)


@torch.no_grad()
def test_what_fits_is_loaded_with_and_without_its_head_and_in_a_variant(saved, tmp_path):
    model, token_ids = tiny_sllm(), random_ids(1, 9)
    expected = model(token_ids).logits
    assert torch.equal(SllmForCausalLM.from_pretrained(saved / "shards")(token_ids).logits, expected)
    base = AutoModel.from_pretrained(saved / "whole")
    assert torch.equal(model.compute_logits(base(token_ids).last_hidden_state), expected)
    for size in ("1GB", "100KB"):
        folder = tmp_path / size
        model.save_pretrained(folder, variant="second", max_shard_size=size)
        assert torch.equal(SllmForCausalLM.from_pretrained(folder, variant="second")(token_ids).logits, expected)
    base.save_pretrained(tmp_path / "base")
    loaded = SllmForCausalLM.from_pretrained(tmp_path / "base")
    assert torch.equal(loaded(token_ids).logits, expected)


def test_other_shapes_can_be_asked_for(saved, tmp_path):
    folder = copy_of(saved, "whole", tmp_path)
    reshaped(folder)
    SllmForCausalLM.from_pretrained(folder, ignore_mismatched_sizes=True)
