"""What the name of a source of documents stands for: local files, or a dataset on the Hub."""

from __future__ import annotations

import glob
import gzip
import re
from pathlib import Path
from typing import Any, NamedTuple

# How `datasets` calls the reader of each kind of file; a trailing .gz makes no difference to it.
READERS = {".jsonl": "json", ".json": "json", ".txt": "text", ".parquet": "parquet"}

# An escape in JSON; as group 1, half of a surrogate pair that the other half does not follow or precede.
ESCAPES = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F]..)|.)", re.DOTALL)


class Source(NamedTuple):
    """Where documents come from.

    Attributes:
        name: What the user called it.
        files: The local files, in order; none for a dataset on the Hub.
        arguments: What `datasets.load_dataset` is called with.
    """

    name: str
    files: list[str]
    arguments: dict[str, Any]


def find_source(name: str, split: str) -> Source:
    """Finds the files or the dataset that a name stands for, see `load_documents`.

    Raises:
        ValueError: If it names files, and there are none, or of a kind that cannot be read.
    """
    path = Path(name).expanduser()
    if path.is_file():
        files = [path]
    elif any(character in name for character in "*?["):
        files = sorted(file for file in map(Path, glob.glob(str(path), recursive=True)) if file.is_file())
        if not files:
            raise ValueError(f"no file matches {name} (looked in {Path.cwd()}).")
    elif _suffix(path) in READERS:
        raise ValueError(f"there is no file {name} (looked in {Path.cwd()}).")
    else:
        # The colon of a folder's name is its own.
        path_or_name, _, config = (str(path), "", "") if path.is_dir() else name.partition(":")
        return Source(name, [], {"path": path_or_name, "name": config or None, "split": split})

    suffixes = sorted({_suffix(file) for file in files})
    unknown = [suffix for suffix in suffixes if suffix not in READERS]
    if unknown:
        raise ValueError(
            f"{name} ends in {unknown[0]!r}: a file of documents ends in {', '.join(READERS)}, or that and .gz."
        )
    readers = {READERS[suffix] for suffix in suffixes}
    if len(readers) > 1:
        raise ValueError(f"{name} matches files of several kinds, {', '.join(suffixes)}: give a list of patterns.")
    # `datasets` takes every name for a pattern.
    patterns = [glob.escape(str(file)) for file in files]
    return Source(name, list(map(str, files)), {"path": readers.pop(), "data_files": patterns, "split": "train"})


def open_source(source: Source, streaming: bool) -> Any:
    """A `datasets.Dataset`, or an `IterableDataset`, with the columns that the source has.

    Returns:
        `None` if it is files without any rows.

    Raises:
        ValueError: If it cannot be read.
    """
    from datasets import load_dataset

    try:
        if not streaming:  # of a stream, each file when its turn comes
            for file in source.files:
                check_surrogates(file)
        return load_dataset(**source.arguments, streaming=streaming)
    except StopIteration:  # what the JSON reader makes of empty files
        return None
    except Exception as error:
        raise unreadable(source.name, error) from error


def check_surrogates(place: str) -> None:
    """Refuses a local file of JSON that holds half of a surrogate pair, which is no character.

    In lines of JSON its reader refuses that. Lists, and whatever else is not in lines, `datasets` reads in a way that
    drops it without a word.

    Raises:
        UnicodeError: Names the file and the escape.
    """
    path = Path(place)
    if READERS.get(_suffix(path)) != "json" or not path.is_file():
        return
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        lines = [file.readline(), file.readline()]
        if all(line.startswith(b"{") for line in lines):
            return
        content = b"".join([*lines, file.read()])
    lone = next((match[1] for match in ESCAPES.finditer(content) if match[1]), None)
    if lone is not None:
        raise UnicodeError(
            f"{path.name} has a lone surrogate, \\{lone.decode(errors='replace')}: that is no character. Replace it, "
            "or leave the document out."
        )


def unreadable(place: str, error: Exception) -> ValueError:
    """What is raised instead of a reader's own error, of which there are many kinds."""
    cause = error.__cause__ or error
    return ValueError(f"{place} cannot be read as a dataset: {type(cause).__name__}: {cause}")


def _suffix(path: Path) -> str:
    """What a file's name ends in, but for `.gz`."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
