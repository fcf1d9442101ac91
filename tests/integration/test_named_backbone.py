"""Adapters of a backbone on the Hub: they keep to its commit, and are found where it is.

The client runs in processes of its own, since this one is offline.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import running_hub
from models import BOUNDARIES, tiny_backbone

ROOT = Path(__file__).resolve().parents[2]

HEADER = """
import sys
from pathlib import Path
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from hf_sllm.modeling import SllmForCausalLM
from hf_sllm.training.adapters import AROUND_BACKBONE, save_base

ids = torch.arange(3, 33)[None]
"""
# Adapters of `me/backbone`, trained with one value or another, and what the model gives with them.
MAKE = """
api = HfApi()
for repo, folder in (("me/backbone", "backbone"), ("me/other", "other")):
    api.create_repo(repo)
    api.upload_folder(repo_id=repo, folder_path=folder)
given = {{"boundary_token_ids": {boundaries}, "max_sentence_length": 9}}
model = SllmForCausalLM.from_backbone("me/backbone", **given)
base = save_base(model, Path("adapters"))
where = ".*language_model.*q_proj"
lora = LoraConfig(target_modules=where, modules_to_save=AROUND_BACKBONE, r=2, init_lora_weights=False)
adapted = get_peft_model(model, lora)
adapted.peft_config["default"].base_model_name_or_path = "me/adapters"
api.create_repo("me/adapters")
for branch, value in (("one", 0.1), ("main", 0.2)):
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data.fill_(value)
    adapted.save_pretrained("adapters")
    torch.save(adapted.eval()(ids).logits, branch)
    if branch != "main":
        api.create_branch("me/adapters", branch=branch)
    api.upload_folder(repo_id="me/adapters", folder_path="adapters", revision=branch)
# From now on the backbone is another one.
api.upload_folder(repo_id="me/backbone", folder_path="other")
"""


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    """Runs code in a folder beside a Hub that has adapters and their backbone; returns what it printed."""
    folder = tmp_path_factory.mktemp("online")
    with running_hub() as server:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        hub = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": server.token}
        settings = {**kept, **hub, "HF_HOME": str(folder / "home"), "NO_PROXY": "*", "PYTHONPATH": str(ROOT)}

        def run(code: str, **more: str) -> str:
            command = [sys.executable, "-c", HEADER + code]
            done = subprocess.run(command, cwd=folder, env={**settings, **more}, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
            return done.stdout

        for seed, name in enumerate(("backbone", "other")):
            tiny_backbone(seed=seed).save_pretrained(folder / name)
        run(MAKE.format(boundaries=BOUNDARIES))
        server.repos["me/backbone"].private = True
        yield run, server


def test_the_commit_is_stored_with_the_name(online):
    _, server = online
    _, first, second = server.repos["me/backbone"].commits
    origin = json.loads(server.files("me/adapters")["config.json"])["backbone_origin"]
    assert origin["name_or_path"] == "me/backbone" and origin["commit"] == first
    assert server.repos["me/backbone"].branches["main"] == second


def test_adapters_keep_to_the_commit_of_their_backbone_at_each_revision_of_their_own(online):
    run, _ = online
    run(
        """
for load in (AutoModelForCausalLM, SllmForCausalLM):
    for branch in ("one", "main"):
        model = load.from_pretrained("me/adapters", revision=branch, cache_dir="elsewhere")
        torch.testing.assert_close(model(ids).logits, torch.load(branch))
places = {file.name for file in Path("elsewhere").iterdir()}
assert {"models--me--adapters", "models--me--backbone"} <= places, places
# The same without the Hub, from that folder and from no other one.
model = AutoModelForCausalLM.from_pretrained("me/adapters", cache_dir="elsewhere", local_files_only=True)
torch.testing.assert_close(model(ids).logits, torch.load("main"))
"""
    )


def test_from_backbone_loads_at_a_revision_and_one_that_is_not_at_hand_is_named_with_what_to_do(online):
    run, server = online
    oids = list(server.repos["me/backbone"].commits)
    said = run(f"""
for lacks in ({{"token": False}}, {{"local_files_only": True}}):
    try:
        SllmForCausalLM.from_pretrained("adapters", cache_dir="empty", **lacks)
    except OSError as error:
        assert "hf download me/backbone --revision" in str(error) and "not at hand" in str(error), error
    else:
        raise SystemExit("it was loaded")
given = {{"boundary_token_ids": {BOUNDARIES}, "max_sentence_length": 9}}
for revision in {oids[1:]}:
    model = SllmForCausalLM.from_backbone("me/backbone", revision=revision, cache_dir="third", **given)
    again = AutoModelForCausalLM.from_pretrained("me/backbone", revision=revision)
    assert torch.equal(model.lm_head.weight, again.lm_head.weight)
    print(model.backbone_origin["commit"])
    # Of a model it is the newest that is known, or the one that is named.
    print(SllmForCausalLM.from_backbone(again, revision=revision, **given).backbone_origin["commit"])
print(SllmForCausalLM.from_backbone(AutoModelForCausalLM.from_pretrained("other"), **given).backbone_origin["commit"])
try:
    SllmForCausalLM.from_backbone("me/backbone", token=False, cache_dir="empty", **given)
except OSError:
    pass
else:
    raise SystemExit("it was loaded without the token")
""")
    assert said.split() == [oids[1], oids[1], oids[2], oids[2], "None"]
