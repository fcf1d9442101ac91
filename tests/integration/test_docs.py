"""The documentation's site builds without a warning, its reference is complete, and its pictures are what is drawn."""

import importlib
import os
import pkgutil
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import hf_sllm

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def test_the_site_builds_without_a_warning(tmp_path):
    for package in ("mkdocs", "mkdocstrings_handlers.python", "material"):
        pytest.importorskip(package, reason="the site needs: pip install --group docs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "reference.html").read_text(encoding="utf-8")
    assert 'id="hf_sllm.SllmForCausalLM.generate"' in page and "max_sentences" in page
    linked = [*re.findall(r'<(?:script|img)[^>]+src="(https?:[^"]+)', page), *stylesheets(page)]
    assert linked == [], "the site loads something from elsewhere"


def stylesheets(page: str) -> list[str]:
    links = re.findall(r"<link[^>]+>", page)
    return [link for link in links if "stylesheet" in link and "http" in link]


def public_names() -> set[str]:
    """What the package and its folders name in `__all__`; the command line is not for import."""
    found = pkgutil.iter_modules(hf_sllm.__path__)
    folders = [f"hf_sllm.{module.name}" for module in found if module.ispkg and module.name != "cli"]
    modules = [importlib.import_module(name) for name in ["hf_sllm", *sorted(folders)]]
    names = [(module.__name__, name) for module in modules for name in getattr(module, "__all__", [])]
    return {f"{module}.{name}" for module, name in names if module == "hf_sllm" or name not in hf_sllm.__all__}


def test_every_public_name_is_in_the_reference():
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert public_names() - set(re.findall(r"^::: (\S+)$", text, re.MULTILINE)) == set()


def test_the_pictures_are_what_the_script_draws(tmp_path):
    """Their words and colours, in order; matplotlib's versions may place them otherwise."""
    runpy.run_path(str(DOCS / "draw.py"))["draw"](tmp_path)
    drawn, kept = (
        {file.name: shown(file) for file in folder.glob("*.svg")} for folder in (tmp_path, DOCS / "pictures")
    )
    assert drawn == kept, "run `python docs/draw.py`, and look at what it draws"


def shown(file: Path) -> list[str]:
    return re.findall(r">[^<>\s][^<>]*</text>|fill: #\w+", file.read_text(encoding="utf-8"))
