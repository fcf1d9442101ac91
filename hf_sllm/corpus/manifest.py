"""The manifest of a corpus: a JSON file that says how its parts came about, and how many rows each of them has."""

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from .parts import Contents, Folder, Part, complete_files, keep_on_disk
from .results import Corpus

# What reads a folder of parts leaves out what begins like this.
NAME = "_manifest.json"

# What all parts of a corpus have in common. What else a manifest says may change from run to run.
COMMON = ("task", "part_rows", "text_column", "id_column", "files", "settings", "weights")

# Of each weight so many values stand for all: training changes all of them.
VALUES = 64


# Of a config: where it was loaded from and by what, which are the same model.
UNRELATED = ("_name_or_path", "transformers_version", "auto_map", "_attn_implementation_autoset")


def fingerprint(model: PreTrainedModel) -> str:
    """A hash of a model's config and of values of each of its weights: another one where it was trained further."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in UNRELATED}
    found = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().flatten()
        places = torch.linspace(0, len(flat) - 1, min(VALUES, len(flat)), dtype=torch.float64).long()
        found.update(f"{name} {tuple(weight.shape)}".encode())
        found.update(flat[places.to(flat.device)].float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def check(folder: Path, about: dict[str, Any]) -> None:
    """Refuses to add parts to a corpus that came about in another way.

    Args:
        folder: Of the corpus.
        about: What is to be the same, as far as it is known.

    Raises:
        ValueError: Names what differs and the remedy.
    """
    remedy = f"Pass the same, or another `output`, or delete {folder} to begin again."
    there = read(folder)
    if there is None:
        if Folder(folder).parts():
            raise ValueError(f"`output` is {folder}, which has parts and no {NAME}. {remedy}")
        return
    for name in COMMON:
        if name in about and there.get(name) != about[name]:
            raise ValueError(f"{_difference(name, there.get(name), about[name], folder)} {remedy}")


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, if it has one.

    Raises:
        ValueError: If it is no manifest.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}. Delete {folder} to begin again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not the manifest of a corpus. Pass another `output`.")
    return found


def update(folder: Folder, about: dict[str, Any]) -> Corpus:
    """Writes the manifest of the parts that are there, of all processes, which need no lock for that.

    Whoever wrote the manifest last has then found no part that it does not name.

    Raises:
        ValueError: If the folder is by now that of another corpus.
    """
    check(folder.path, about)
    while True:
        parts = folder.parts()
        found = total(parts, len(about["files"]))
        listed = {part.name: {"rows": written.rows, "errors": written.errors} for part, written in parts.items()}
        counts = {"complete": found.complete, "rows": found.rows, "errors": found.errors}
        write_json(folder.path / NAME, {**about, **counts, "parts": listed})
        if folder.parts() == parts:
            return found


def total(parts: dict[Part, Contents], files: int) -> Corpus:
    """What is there of a corpus of so many source files."""
    return Corpus(
        rows=sum(written.rows for written in parts.values()),
        errors=sum(written.errors for written in parts.values()),
        parts=len(parts),
        complete=len(complete_files(parts)) == files,
    )


def write_json(path: Path, value: Any) -> None:
    """Replaces a file at once: whoever reads it finds the old one or the new one."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with draft.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1) + "\n")
        keep_on_disk(file)
    os.replace(draft, path)


def _difference(name: str, there: Any, wanted: Any, folder: Path) -> str:
    """What differs, in words."""
    if name == "files":
        return f"`data` are other files than those of which {folder} was made, or they have changed."
    if name == "weights":
        return f"`model` is another one than that by which {folder} was made, or it was trained since."
    if isinstance(there, dict) and isinstance(wanted, dict):
        name = next(key for key in sorted({*there, *wanted}) if there.get(key) != wanted.get(key))
        there, wanted = there.get(name), wanted.get(name)
    return f"`{name}` is {wanted!r}, and {folder} was made with {there!r}."
