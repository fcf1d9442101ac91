"""Training over several processes, by the configurations of accelerate that come with the package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from models import BOUNDARIES, option_model, tiny_backbone, tiny_sllm
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_sllm.modeling import SentenceVaeModel
from hf_sllm.training import load_recipe, train
from hf_sllm.training.recipe import RECIPES

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATIONS = ROOT / "hf_sllm/training/accelerate"
# On the CPU accelerate has DDP alone: what trains by FSDP2 is told that it has GPUs.
SCRIPTS = {"ddp": ["-m", "hf_sllm.training"], "fsdp2": [str(ROOT / "tests/train_on_cpu.py")]}


def launch(name: str, recipe: Path, output_dir: Path, cache: Path) -> None:
    """Trains in two processes."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(CONFIGURATIONS / f"{name}.yaml"), "--num_processes", "2", "--main_process_port", "0"),
        *("--mixed_precision", "no", *SCRIPTS[name], str(recipe), "--output-dir", str(output_dir)),
    ]
    settings = {"HF_DATASETS_CACHE": str(cache), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-5000:]


def logged(output_dir: Path, name: str) -> torch.Tensor:
    log = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return torch.tensor([float(entry[name]) for entry in log if "loss" in entry])


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_two_processes_reach_the_losses_and_weights_of_one(name, tmp_path, monkeypatch):
    """One text at a time, so that the processes' sentences differ much in number and length: all of them, sharded,
    have to gather the same layers in the same order nonetheless."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    values = yaml.safe_load((RECIPES / "tiny.yaml").read_text())
    values["sllm_config"].update(stop_head=True, reconstruction_weight=0.5)
    values.update(dict.fromkeys(("train_data", "valid_data"), str(RECIPES / "tiny.jsonl")))
    values.update(max_steps=4, logging_steps=1, save_strategy="no", dataloader_drop_last=True, disable_tqdm=True)
    values.update(baseline=name == "ddp", report_to="none", ddp_timeout=60)
    for processes in (1, 2):
        own = {"per_device_train_batch_size": 2 // processes, "use_cpu": processes == 1 or name == "ddp"}
        (tmp_path / f"{processes}.yaml").write_text(yaml.safe_dump({**values, **own}))
    launch(name, tmp_path / "2.yaml", tmp_path / "two", tmp_path / "cache")
    train(load_recipe(tmp_path / "1.yaml", tmp_path / "one"))

    for figure in ("loss", "grad_norm", "num_input_tokens_seen"):
        found, expected = (logged(tmp_path / folder, figure) for folder in ("two", "one"))
        assert len(found) == 4
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    found, expected = (json.loads((tmp_path / folder / "results.json").read_text()) for folder in ("two", "one"))
    for found_line, expected_line in zip(found, expected, strict=True):
        assert found_line["bits_per_byte"] == pytest.approx(expected_line["bits_per_byte"], abs=1e-4)
    found, expected = (load_file(tmp_path / folder / "model.safetensors") for folder in ("two", "one"))
    torch.testing.assert_close({name: found[name] for name in expected}, expected, rtol=0, atol=1e-4)
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "two", output_loading_info=True)
    assert not any(loading.values())
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("name", sorted(file.stem for file in CONFIGURATIONS.glob("*.yaml")))
def test_accelerate_knows_each_key_of_a_configuration(name):
    file = CONFIGURATIONS / f"{name}.yaml"
    parser = launch_command_parser()
    arguments, *_ = _validate_launch_command(parser.parse_args(["--config_file", str(file), "script.py"]))
    values = yaml.safe_load(file.read_text())
    known = {action.dest for action in parser._actions}
    for part in ("fsdp_config", "deepspeed_config", "parallelism_config"):
        for key, value in values.get(part, {}).items():
            assert key in known
            assert getattr(arguments, key) == value
    assert arguments.mixed_precision == "bf16"
    assert arguments.use_fsdp == ("fsdp_config" in values)
    assert arguments.use_deepspeed == ("deepspeed_config" in values)


@pytest.mark.parametrize("name", ["llama", "gpt2", "paper", "sentence VAE"])
def test_what_is_sharded_by_itself_is_each_layer_of_each_part(name):
    """Whatever the parts' architectures are: the paper's decoder has GPT-2's layers beside a Llama's."""
    if name == "sentence VAE":
        model = SentenceVaeModel.from_backbone(tiny_backbone(), boundary_token_ids=BOUNDARIES)
    else:
        model = option_model("paper") if name == "paper" else tiny_sllm(name)
    settings = yaml.safe_load((CONFIGURATIONS / "fsdp2.yaml").read_text())["fsdp_config"]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=settings["fsdp_version"], auto_wrap_policy=settings["fsdp_auto_wrap_policy"]
    )
    plugin.set_auto_wrap_policy(model)
    is_sharded = fsdp2_prepare_auto_wrap_policy(plugin, model)
    layers = {
        f"{path}.{index}"
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        for index in range(len(module))
    }
    for part in ("sentence_encoder", "sentence_decoder", *([] if name == "sentence VAE" else ["language_model"])):
        assert any(part in path for path in layers)
    assert {path for path, module in model.named_modules() if is_sharded(module)} == layers
