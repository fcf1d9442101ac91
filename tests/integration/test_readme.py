"""What the README and the first pages of the documentation tell to run, runs as it stands."""

import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_sllm.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "docs/quickstart.md", "docs/wrap.md"]

# What is on the Hub in the documentation is beside the repository in the tests.
ON_THE_HUB = "HuggingFaceTB/SmolLM2-135M"


def code_of(page: str) -> list[tuple[str, str]]:
    """The blocks of code of a page, in order: language and text."""
    return re.findall(r"```(python|bash)\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, request, monkeypatch, tmp_path):
    """From top to bottom, each block after those before it; of the shell's lines those that call `hf-sllm`."""
    import datasets

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    namespace: dict = {}
    for language, code in code_of(page):
        if ON_THE_HUB in code or "../shared" in code:
            code = code.replace(ON_THE_HUB, str(request.getfixturevalue("shared") / "models" / "stories260K"))
        code = code.replace("runs/", f"{tmp_path}/")
        if language == "python":
            exec(code, namespace)
            continue
        for line in code.splitlines():
            if line.startswith("hf-sllm "):
                result = CliRunner().invoke(app, shlex.split(line)[1:])
                assert result.exit_code == 0, f"{line}\n{result.output}"


@pytest.mark.slow
def test_the_quick_start_is_five_lines_from_a_fresh_environment(tmp_path):
    """It needs a package index, and tells the seconds. Nothing of what is installed here is used."""
    (_, commands), *_ = code_of("docs/quickstart.md")
    assert len(commands.splitlines()) == 5
    copy = tmp_path / "copy"
    leave_out = shutil.ignore_patterns(".*", "runs", "build", "site", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=leave_out)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    begin = time.monotonic()
    done = subprocess.run(
        ["bash", "-e", "-c", commands], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - begin
    assert done.returncode == 0, done.stderr
    assert "Once upon a time" in done.stdout
    print(f"\n{seconds:.0f} seconds")  # `-s` shows it
