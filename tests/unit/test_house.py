"""The laws of the house: who may import whom, what is packaged, and how long a file may be."""

import ast
import importlib.util
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODELING = ROOT / "modeling"
PACKAGE = ROOT / "hf_sllm"

# What a process without hf_sllm has when it loads a checkpoint with trust_remote_code.
TRAVELS_WITH = {*sys.stdlib_module_names, "torch", "transformers", "safetensors", "huggingface_hub"}

# By the first word of a file's name.
LINE_LIMITS = {"configuration": 150, "generation": 500}
OTHER_LINE_LIMIT = 600


def python_files(*folders: Path) -> list[Path]:
    """Returns the folders' own Python files: not those behind a symlink, nor the code saved with a checkpoint."""
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    return [file for file in files if not file.is_relative_to(PACKAGE / "checkpoints")]


def imports(file: Path) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Yields each import with the full name it brings: `from ..cli import app` in hf_sllm/data is hf_sllm.cli.app."""
    package = ("hf_sllm", "modeling") if file.parent == MODELING else file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = (*above, node.module) if node.module else above
            yield from ((node, ".".join((*module, alias.name))) for alias in node.names)


def is_relative(node: ast.Import | ast.ImportFrom) -> bool:
    return isinstance(node, ast.ImportFrom) and node.level > 0


def where(file: Path, node: ast.stmt) -> str:
    return f"{file.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"


def test_modeling_has_no_folders():
    assert [path for path in MODELING.iterdir() if path.is_dir() and path.name != "__pycache__"] == []


def test_modeling_files_import_one_another_by_name():
    """transformers copies to the Hub only what it finds by `from .name import X`."""
    names = {file.stem for file in MODELING.glob("*.py")}
    offenders = [
        where(file, node)
        for file in python_files(MODELING)
        for node, _ in imports(file)
        if is_relative(node) and not (node.level == 1 and node.module in names)
    ]
    assert offenders == []


def test_modeling_imports_only_what_travels():
    offenders = [
        where(file, node)
        for file in python_files(MODELING)
        for node, name in imports(file)
        if not is_relative(node) and name.split(".")[0] not in TRAVELS_WITH
    ]
    assert offenders == []


def test_modeling_has_one_import_path():
    """`import modeling` would make a second copy of every class."""
    offenders = [
        where(file, node)
        for file in python_files(MODELING, PACKAGE, ROOT / "spaces_app", ROOT / "tests")
        for node, name in imports(file)
        if name.split(".")[0] == "modeling"
    ]
    assert offenders == []


def test_nobody_imports_the_command_line_or_the_space():
    offenders = [
        where(file, node)
        for file in python_files(MODELING, PACKAGE)
        for node, name in imports(file)
        if f"{name}.".startswith(("hf_sllm.cli.", "spaces_app.")) and file.parent != PACKAGE / "cli"
    ]
    assert offenders == []


def test_what_inspects_models_imports_only_what_lies_below_it():
    below = ("hf_sllm.modeling.", "hf_sllm.data.", "hf_sllm.evaluation.", "hf_sllm.inspection.")
    offenders = [
        where(file, node)
        for file in python_files(PACKAGE / "inspection")
        for node, name in imports(file)
        if f"{name}.".startswith("hf_sllm.") and not f"{name}.".startswith(below)
    ]
    assert offenders == []


def test_hf_sllm_modeling_is_the_modeling_folder():
    assert (PACKAGE / "modeling").resolve() == MODELING
    spec = importlib.util.find_spec("hf_sllm.modeling")
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).resolve() == MODELING / "__init__.py"


def test_every_package_is_listed_in_pyproject():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    present = {".".join(file.relative_to(ROOT).parent.parts) for file in PACKAGE.rglob("__init__.py")}
    # rglob stays out of the symlink, so modeling is named here.
    assert set(settings["tool"]["setuptools"]["packages"]) == present | {"hf_sllm.modeling"}


def test_files_of_modeling_are_short_enough_to_read():
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in python_files(MODELING)}
    limits = {file: LINE_LIMITS.get(file.stem.split("_")[0], OTHER_LINE_LIMIT) for file in lengths}
    assert {file.name: length for file, length in lengths.items() if length > limits[file]} == {}
