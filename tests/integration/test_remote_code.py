"""A checkpoint travels: a process that has never heard of hf_sllm loads it and computes the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import CHECKPOINT_CODE, option_model, random_ids

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import sys, torch
from pathlib import Path
{imports}
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
folder = Path(sys.argv[1])
remote = {{"trust_remote_code": True}} if {remote} else {{}}
token_ids = torch.load(folder / "ids.pt", weights_only=True)
model = AutoModelForCausalLM.from_pretrained(folder, **remote)
assert ("transformers_modules" in type(model).__module__) == {remote}, type(model)
assert ("hf_sllm" in sys.modules) != {remote}
torch.save(model(token_ids).logits, folder / "logits.pt")
torch.save(model.generate(token_ids, max_new_tokens=15, do_sample=False, max_sentences=9), folder / "text.pt")
base = AutoModel.from_pretrained(folder, **remote)
torch.save(model.compute_logits(base(token_ids).last_hidden_state), folder / "base.pt")
assert AutoConfig.from_pretrained(folder, **remote).model_type == "sllm"
model.save_pretrained(folder / "again")
assert sorted(p.name for p in (folder / "again").glob("*.py")) == sorted(p.name for p in folder.glob("*.py"))
"""


# The other way round, the classes are those that every test of saving and loading has.
@pytest.mark.parametrize(
    "option, remote", [("default", False), ("paper", True)], ids=["default-with the package", "paper-without it"]
)
@torch.no_grad()
def test_a_fresh_process_computes_the_same(tmp_path, option, remote):
    model, token_ids = option_model(option), random_ids(2, 20)
    model.save_pretrained(tmp_path)
    torch.save(token_ids, tmp_path / "ids.pt")
    script = tmp_path / "script"
    script.write_text(SCRIPT.format(imports="" if remote else "import hf_sllm", remote=remote))
    run = subprocess.run(
        [sys.executable, "-P", str(script), str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": "" if remote else str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    logits, text, base = (torch.load(tmp_path / f"{name}.pt") for name in ("logits", "text", "base"))
    torch.testing.assert_close(logits, model(token_ids).logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(base, logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(text, model.generate(token_ids, max_new_tokens=15, do_sample=False))


def test_the_auto_map_is_complete_and_the_code_is_the_packages(tmp_path):
    model = option_model("default")
    model.save_pretrained(tmp_path)
    assert set(model.config.auto_map) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    saved = {file.name: file.read_text() for file in tmp_path.glob("*.py")}
    package = {file.name: file.read_text() for file in CHECKPOINT_CODE}
    assert saved == package


def test_a_pushed_checkpoint_is_what_was_saved(tmp_path, monkeypatch):
    """The Hub is a folder here: what `push_to_hub` would commit is written to it, and loaded from it."""
    from huggingface_hub import HfApi

    model, token_ids = option_model("default"), random_ids(2, 20)
    repo = tmp_path / "repo"

    def create_commit(self, repo_id, operations, **kwargs):
        for operation in operations:
            target = repo / operation.path_in_repo
            target.parent.mkdir(parents=True, exist_ok=True)
            with operation.as_file() as file:
                target.write_bytes(file.read())

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **kwargs: type("Repo", (), {"repo_id": repo_id}))
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    model.push_to_hub("someone/sllm-tiny")
    loaded = type(model).from_pretrained(repo)
    assert torch.equal(loaded(token_ids).logits, model(token_ids).logits)
    assert {"config.json", "model.safetensors", "modeling_sllm.py"} <= {file.name for file in repo.iterdir()}
