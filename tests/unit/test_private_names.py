"""Private names of transformers that the code uses stand in `modeling/transformers_private.py`, and no others."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel, Trainer
from transformers.cache_utils import Cache
from transformers.generation.streamers import BaseStreamer

from hf_sllm.modeling.transformers_private import PRIVATE_MODULES, PRIVATE_NAMES

ROOT = Path(__file__).resolve().parents[2]

# What our classes inherit: a name of ours that is one of theirs overrides it.
INHERITED = set().union(
    *(dir(base) for base in (BaseStreamer, Cache, GenerationMixin, PreTrainedConfig, PreTrainedModel, Trainer))
)
# Private names of other libraries, all in what measures.
OF_OTHERS = {
    "torch": {"_C", "_compile_all_devices", "_op_dk", "_python_dispatch", "_pytree", "_unsafe_view", "_cdata"},
    "datasets": {"_fingerprint"},
}
DOCUMENTED = {
    "transformers.cache_utils",
    "transformers.generation.streamers",
    "transformers.integrations",
    "transformers.modeling_outputs",
    "transformers.trainer_utils",
    "transformers.utils",
}
# Functions that take the name of an attribute or of an argument.
BY_NAME = {"getattr", "setattr", "hasattr", "delattr", "pop", "get"}


def code() -> dict[Path, ast.Module]:
    files = [*(ROOT / "modeling").glob("*.py"), *(ROOT / "hf_sllm").rglob("*.py")]
    return {file: ast.parse(file.read_text(encoding="utf-8")) for file in files if "checkpoints" not in file.parts}


def is_private(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"_[a-zA-Z]\w*", name) is not None


def used_names(tree: ast.AST) -> Iterator[str]:
    """Private names that are read or set on an object, passed as a keyword, named in a string, or imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Call):
            yield from (keyword.arg for keyword in node.keywords if keyword.arg)
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in BY_NAME:
                yield from (argument.value for argument in node.args if isinstance(argument, ast.Constant))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (alias.name for alias in node.names)


def members(tree: ast.AST) -> Iterator[str]:
    """Names that a class of ours defines, in its body or on `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for line in node.body:
                if isinstance(line, ast.FunctionDef):
                    yield line.name
                targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
                yield from (target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def private_names(trees: dict[Path, ast.AST]) -> dict[str, list[str]]:
    """The private names that are not our own, with the files that use them."""
    own = {name for tree in trees.values() for name in members(tree)} - INHERITED
    functions = {node.name for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    found: dict[str, list[str]] = {}
    for file, tree in trees.items():
        overridden = {name for name in members(tree) if name in INHERITED}
        for name in {*used_names(tree), *overridden}:
            if is_private(name) and name not in own and (name in INHERITED or name not in functions):
                found.setdefault(name, []).append(file.name)
    return found


def test_no_private_name_of_transformers_is_used_that_is_not_listed():
    others = set().union(*OF_OTHERS.values())
    found = private_names(code())
    assert {name: files for name, files in found.items() if name not in {*PRIVATE_NAMES, *others}} == {}


def test_no_name_is_listed_in_vain_or_without_a_reason():
    assert set(PRIVATE_NAMES) - set(private_names(code())) == set()
    assert all(len(reason) > 20 for reason in [*PRIVATE_NAMES.values(), *PRIVATE_MODULES.values()])


def test_no_undocumented_module_of_transformers_is_used_that_is_not_listed():
    nodes = [node for tree in code().values() for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    used = {node.module for node in nodes if (node.module or "").startswith("transformers.")}
    assert used - DOCUMENTED - set(PRIVATE_MODULES) == set()


@pytest.mark.parametrize(
    "line",
    [
        "model._new_name",
        "self._new_name",
        "model._new_name = 1",
        "getattr(model, '_new_name', None)",
        "kwargs.pop('_new_name')",
        "call(_new_name=1)",
        "from transformers.utils import _new_name",
        "class Ours:\n    _save_checkpoint = 1",
        "class Ours:\n    def _save_checkpoint(self): ...",
    ],
)
def test_each_way_to_use_a_private_name_is_seen(line):
    assert len(private_names({Path("new.py"): ast.parse(line)})) == 1
    assert private_names({Path("new.py"): ast.parse("class Ours:\n    def _ours(self): self._ours()")}) == {}
