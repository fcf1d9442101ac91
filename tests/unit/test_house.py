"""The laws of the house: what goes where, who may import whom, what is declared, and what is packaged."""

import ast
import importlib.util
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODELING = ROOT / "modeling"
PACKAGE = ROOT / "hf_sllm"

# What a process without hf_sllm has when it loads a checkpoint with trust_remote_code.
TRAVELS_WITH = {*sys.stdlib_module_names, "torch", "transformers", "safetensors", "huggingface_hub"}

# A subclass of one of these is needed by a forward pass, or by reading a state dict or a config.
OF_A_MODEL = {"Module", "PreTrainedModel", "PreTrainedConfig", "GenerationMixin", "Cache", "CacheLayerMixin"}

# A room is a folder of the plugin for one purpose. data/ reads what the rooms take, cli/ calls them.
ROOMS = sorted(file.parent.name for file in PACKAGE.glob("*/__init__.py"))
ROOMS = [name for name in ROOMS if name not in ("modeling", "data", "cli")]

# What the command line does with a room beside entering it.
BESIDE = ("print_", "plot_", "load_", "make_", "check_")

# Imported by another name than that of the distribution.
DISTRIBUTIONS = {"yaml": "pyyaml"}


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


def test_what_a_forward_pass_or_a_state_dict_needs_is_in_modeling():
    """But for sparse autoencoders: they are fitted to what a model computes, and are no part of it."""
    offenders = [
        f"{file.relative_to(ROOT)}:{node.lineno}: class {node.name}"
        for file in python_files(PACKAGE, ROOT / "spaces_app")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and node.name != "SparseAutoencoder"
        and OF_A_MODEL & {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
    ]
    assert offenders == []


def test_each_room_has_its_entry_points_in_run():
    """Or, a rarer one, in a file of its own name. They are what the command line calls."""
    assert [name for name in ROOMS if not (PACKAGE / name / "run.py").is_file()] == []
    offenders = []
    for file in python_files(PACKAGE / "cli"):
        for node, name in imports(file):
            module, _, attribute = name.rpartition(".")
            if module.split(".")[:1] != ["hf_sllm"] or attribute.startswith(BESIDE):
                continue
            what = getattr(importlib.import_module(module), attribute)
            room, own = what.__module__.split(".")[-2:] if inspect.isfunction(what) else ("", "")
            if room in ROOMS and own not in ("run", attribute):
                offenders.append(f"{where(file, node)}: it is in {what.__module__}")
    assert offenders == []


def declared(text: str) -> str:
    """The name in a requirement: lm-eval of `lm_eval[hf]>=0.4.13`."""
    return re.split(r"[^\w.-]", text)[0].lower().replace("_", "-")


def third_party(file: Path, at_import: bool = False) -> Iterator[tuple[ast.stmt, str]]:
    """Yields each import of a file that is of no one here, with its distribution.

    Args:
        at_import: Only what importing the file imports: not what a function does, nor what is there for types alone.
    """
    at_hand = {*sys.stdlib_module_names, "hf_sllm", *(path.stem for path in file.parent.glob("*.py"))}
    at_hand |= {
        path.stem for folder in ("tests", "tests/integration", "spaces_app") for path in (ROOT / folder).glob("*.py")
    }
    nodes: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        inner = isinstance(node, ast.FunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        if not (at_import and inner):
            nodes += ast.iter_child_nodes(node)
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        for name in names:
            if (top := name.split(".")[0]) not in at_hand:
                assert isinstance(node, ast.stmt)
                yield node, DISTRIBUTIONS.get(top, top.replace("_", "-").lower())


def test_what_is_imported_is_declared():
    """For what the package imports as it is imported, its dependencies suffice; the rest is in an extra or a group."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, groups = settings["project"], settings["dependency-groups"]
    always = {declared(text) for text in project["dependencies"]}
    extras = {name: always | set(map(declared, texts)) for name, texts in project["optional-dependencies"].items()}
    by_function = set().union(*(texts for name, texts in extras.items() if name not in ("space", "trl")))
    for_tests = set().union(*extras.values(), *(map(declared, filter(is_text, texts)) for texts in groups.values()))
    rules = [
        (python_files(MODELING, PACKAGE), True, always),
        (python_files(PACKAGE), False, by_function),
        (python_files(ROOT / "spaces_app"), False, extras["space"]),
        (python_files(ROOT / "examples"), False, extras["train"]),
        (python_files(ROOT / "tests", ROOT / "docs"), False, for_tests),
    ]
    offenders = [
        f"{where(file, node)}: {name}"
        for files, at_import, known in rules
        for file in files
        for node, name in third_party(file, at_import)
        if name not in known
    ]
    assert offenders == []


def is_text(requirement: object) -> bool:
    """Whether it is no group that is included."""
    return isinstance(requirement, str)
