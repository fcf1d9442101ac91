"""Sharing, end to end: the real huggingface_hub client, in a process of its own, against a small Hub on loopback.

The client reads its settings when it is imported, so it cannot be in this process, which is offline.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import Fault, running_hub
from models import CHECKPOINT_CODE, random_ids, tiny_sllm

from hf_sllm.data import train_tokenizer

ROOT = Path(__file__).resolve().parents[2]

# Runs each line of JSON that it is sent, and answers with a line: what was printed, and what was raised.
CLIENT = """
import contextlib, io, json, sys, traceback
import torch
from huggingface_hub import HfApi
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner
import hf_sllm
from hf_sllm.cli import app
from hf_sllm.hub import push

def cli(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    print(result.output, result.exit_code)

names = dict(globals())
answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    said, error = io.StringIO(), None
    with contextlib.redirect_stdout(said):
        try:
            exec(json.loads(line), {**names})
        except BaseException as raised:
            error = f"{type(raised).__name__}: {raised}"
    print(json.dumps([said.getvalue(), error]), file=answers, flush=True)
"""


def environment(server, home, path: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return {
        **kept,
        "HF_ENDPOINT": server.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(home),
        "HF_TOKEN": server.token,
        "NO_PROXY": "*",
        "PYTHONPATH": path,
        "COLUMNS": "200",
    }


@pytest.fixture(scope="module")
def hub():
    with running_hub() as server:
        yield server


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """Runs code in a process that is online. Returns what it printed; what it raises is raised here as its text."""
    home = tmp_path_factory.mktemp("home")
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(home / "log").open("w"),
        text=True,
        env=environment(hub, home, str(ROOT)),
    )

    def run(code: str) -> str:
        process.stdin.write(json.dumps(code) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, (home / "log").read_text()
        said, error = json.loads(answer)
        if error is not None:
            raise RuntimeError(error)
        return said

    yield run
    process.kill()
    process.wait()


@pytest.fixture(autouse=True)
def a_good_day(hub):
    hub.faults.clear()
    hub.log.clear()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny SLLM with its tokenizer, among what a training run leaves beside them."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_sllm().save_pretrained(folder)
    train_tokenizer(["The owl said no. The mice ran!"], 61 + 256).save_pretrained(folder)
    torch.save({}, folder / "training_args.bin")
    torch.save({}, folder / "optimizer.pt")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "model.safetensors").write_bytes(b"0" * 100)
    (folder / "runs").mkdir()
    (folder / "notes.py").write_text("secret = 1\n")
    (folder / "trainer_state.json").write_text("{}")
    return folder


LOAD = """
model = AutoModelForCausalLM.from_pretrained({where})
torch.save(model(torch.tensor({ids})).logits, {file!r})
print(type(model).__module__)
"""


@torch.no_grad()
def test_what_was_pushed_is_loaded_by_name_revision_and_subfolder(hub, client, checkpoint, tmp_path):
    token_ids = random_ids(1, 12)
    expected = tiny_sllm()(token_ids).logits
    other = tiny_sllm(seed=1)
    other.save_pretrained(tmp_path / "other")
    own, others, branch = repr(str(checkpoint)), repr(str(tmp_path / "other")), "'me/loaded', branch='old'"
    client(f"AutoModelForCausalLM.from_pretrained({own}).push_to_hub('me/loaded')")
    client(f"HfApi().create_branch({branch})\npush({others}, 'me/loaded', overwrite_card=True)")
    kinds = "allow_patterns=['*.json', '*.safetensors']"
    client(f"HfApi().upload_folder(repo_id='me/loaded', folder_path={own}, path_in_repo='small', {kinds})")
    places = {
        "'me/loaded'": other(token_ids).logits,
        "'me/loaded', revision='old'": expected,
        "'me/loaded', subfolder='small'": expected,
    }
    for where, logits in places.items():
        code = LOAD.format(where=where, ids=token_ids.tolist(), file=str(tmp_path / "logits.pt"))
        assert client(code).strip() == "hf_sllm.modeling.modeling_sllm"
        torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits, rtol=1e-5, atol=1e-5)
    client("hf_sllm.SllmForCausalLM.from_pretrained('me/loaded', subfolder='small', revision='main')")


def test_a_push_sends_the_checkpoint_and_its_code_in_one_commit_and_nothing_else(hub, client, checkpoint):
    said = client(f"cli('push', {str(checkpoint)!r}, 'me/pushed', '--private')")
    assert said.strip().endswith("0"), said
    files = hub.files("me/pushed")
    code = {file.name for file in CHECKPOINT_CODE}
    assert {name for name in files if name.endswith(".py")} == code
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} < files.keys()
    assert not {name for name in files if name.endswith((".bin", ".pt")) or "/" in name}
    assert "notes.py" not in files and "trainer_state.json" not in files
    assert files["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
    assert len(hub.repos["me/pushed"].commits) == 2 and hub.repos["me/pushed"].private


def test_a_dry_run_lists_both_and_asks_nobody(hub, client, checkpoint):
    said = client(f"cli('push', {str(checkpoint)!r}, 'me/dry', '--dry-run')")
    assert "model.safetensors" in said and "training_args.bin" in said and "checkpoint-5" in said
    assert said.index("model.safetensors") < said.index("training_args.bin")
    assert f"{(checkpoint / 'model.safetensors').stat().st_size:,}" in said
    assert hub.log == [] and "me/dry" not in hub.repos


def test_a_card_written_by_hand_is_not_overwritten_and_ours_is(hub, client, checkpoint):
    write = "HfApi().upload_file(repo_id='me/card', path_or_fileobj={!r}, path_in_repo='README.md')"
    go = f"cli('push', {str(checkpoint)!r}, 'me/card')"
    assert client(go).strip().endswith("0")
    made = hub.files("me/card")["README.md"]
    (checkpoint / "training.json").write_text('{"tokens_seen": 5, "minutes": 1.0, "seed": 0}')
    assert client(go).strip().endswith("0")  # ours takes the place of ours
    changed = hub.files("me/card")["README.md"]
    assert changed != made and b"5 tokens seen" in changed
    for by_hand in (b"# My own words\n", changed.replace(b"Not stated", b"Anything", 1)):
        client(write.format(by_hand))
        commits = len(hub.repos["me/card"].commits)
        said = client(go)
        assert "README.md of me/card" in said and "--overwrite-card" in said and said.strip().endswith("1")
        assert hub.files("me/card")["README.md"] == by_hand and len(hub.repos["me/card"].commits) == commits
    assert client(go.replace("me/card'", "me/card', '--overwrite-card'")).strip().endswith("0")
    assert hub.files("me/card")["README.md"] == changed
    (checkpoint / "training.json").unlink()


REMOTE = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("me/remote", trust_remote_code=True)
assert "hf_sllm" not in sys.modules
for name, module in list(sys.modules.items()):
    if name.startswith("transformers_modules") and getattr(module, "__file__", None):
        print(module.__file__)
"""


def test_trusted_remote_code_is_that_of_modeling_and_no_more(hub, client, checkpoint, tmp_path):
    client(f"push({str(checkpoint)!r}, 'me/remote')")
    client("HfApi().upload_file(repo_id='me/remote', path_or_fileobj=b'raise SystemExit(7)', path_in_repo='evil.py')")
    run = subprocess.run(
        [sys.executable, "-P", "-c", REMOTE],
        cwd=tmp_path,
        env=environment(hub, tmp_path, ""),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    ran = {Path(file).stem for file in run.stdout.split()} - {"__init__"}
    assert ran and ran <= {file.stem for file in (ROOT / "modeling").glob("*.py")}
    asked = {line.split()[1].rsplit("/", 1)[-1] for line in hub.log if line.startswith("GET /me/remote/resolve")}
    assert "evil.py" not in asked and "modeling_sllm.py" in asked


def test_a_connection_that_drops_is_taken_up_and_nothing_broken_is_kept(hub, client, checkpoint):
    client(f"push({str(checkpoint)!r}, 'me/drops')")
    hub.faults = [Fault("GET", "/storage/", drop_after=10_000)]
    client("AutoModelForCausalLM.from_pretrained('me/drops')")
    assert len([line for line in hub.log if line.startswith("GET /storage")]) == 2
    home = Path(client("import os; print(os.environ['HF_HOME'])").strip())
    loaded = next((home / "hub" / "models--me--drops").rglob("model.safetensors"))
    assert loaded.read_bytes() == (checkpoint / "model.safetensors").read_bytes()


def test_a_download_that_never_ends_well_loads_nothing_and_the_next_does(hub, client, checkpoint, tmp_path):
    client(f"push({str(checkpoint)!r}, 'me/broken')")
    cache = tmp_path / "cache"
    load = f"AutoModelForCausalLM.from_pretrained('me/broken', cache_dir={str(cache)!r})"
    hub.faults = [Fault("GET", "/storage/", drop_after=1000), Fault("GET", "/storage/", status=404, times=9)]
    with pytest.raises(RuntimeError):
        client(load)
    assert not list(cache.rglob("model.safetensors")) and not list(cache.rglob("*.incomplete"))
    hub.faults.clear()
    client(load)
    assert next(cache.rglob("model.safetensors")).read_bytes() == (checkpoint / "model.safetensors").read_bytes()


def forget_weights(hub, checkpoint) -> None:
    """As if they had never been sent: the client sends no large file twice."""
    weights = (checkpoint / "model.safetensors").read_bytes()
    hub.blobs = {oid: blob for oid, blob in hub.blobs.items() if blob != weights}


def test_busy_and_failing_answers_are_tried_again(hub, client, checkpoint, tmp_path):
    forget_weights(hub, checkpoint)
    hub.faults = [
        Fault("POST", "/preupload/", status=503),
        Fault("PUT", "/storage/", status=500),
        Fault("POST", "/lfs-verify", status=429, headers={"Retry-After": "0"}),
    ]
    client(f"push({str(checkpoint)!r}, 'me/busy')")
    assert all(fault.times == 0 for fault in hub.faults)
    hub.faults = [Fault("HEAD", "model.safetensors", status=503), Fault("GET", "/storage/", status=429)]
    client(f"AutoModelForCausalLM.from_pretrained('me/busy', cache_dir={str(tmp_path)!r})")
    assert all(fault.times == 0 for fault in hub.faults)


@pytest.mark.parametrize("path", ["/storage/", "/commit/"])
def test_a_push_that_fails_changes_nothing_that_is_seen_and_can_be_done_again(hub, client, checkpoint, path):
    repo = f"me/fails{path.count('c')}"
    method = "PUT" if path == "/storage/" else "POST"
    forget_weights(hub, checkpoint)
    hub.faults = [Fault(method, path, status=400, times=9)]
    said = client(f"cli('push', {str(checkpoint)!r}, {repo!r})")
    assert said.strip().endswith("1") and "error:" in said and "Traceback" not in said
    assert hub.files(repo).keys() == {".gitattributes"}
    hub.faults.clear()
    assert client(f"cli('push', {str(checkpoint)!r}, {repo!r})").strip().endswith("0")
    assert "model.safetensors" in hub.files(repo)


def test_what_the_hub_does_not_give_is_said(hub, client, checkpoint):
    with pytest.raises(RuntimeError, match="OSError.*me/nowhere"):
        client("AutoModelForCausalLM.from_pretrained('me/nowhere')")
    client(f"push({str(checkpoint)!r}, 'me/secret', private=True)")
    with pytest.raises(RuntimeError, match="me/secret"):
        client("AutoModelForCausalLM.from_pretrained('me/secret', token='hf_wrong')")
    with pytest.raises(RuntimeError, match="401"):
        client(f"push({str(checkpoint)!r}, 'me/refused', token='hf_wrong')")
    assert "me/refused" not in hub.repos


def test_a_pickle_on_the_hub_is_refused_and_never_fetched(hub, client, checkpoint, tmp_path):
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    client("HfApi().create_repo('me/pickle')")
    client(f"HfApi().upload_folder(repo_id='me/pickle', folder_path={str(tmp_path)!r})")
    hub.log.clear()
    with pytest.raises(RuntimeError, match="ValueError.*pytorch_model.bin"):
        client("AutoModelForCausalLM.from_pretrained('me/pickle')")
    assert not [line for line in hub.log if line.startswith("GET") and ("storage" in line or ".bin" in line)]
