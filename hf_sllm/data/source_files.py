"""The files of sources, each read in order as tables of so many rows: for data that no memory or cache has to hold."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .sources import Source, check_surrogates, find_source, open_source, unreadable

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class SourceFile:
    """A file of a source.

    Attributes:
        name: Of a local file its path from the folder in which all local files of the sources are, the same wherever
            that folder is; of a dataset on the Hub, or of a folder, its name, the split and the number of the file.
        bytes: The size of a local file that is a source or matches one; else `None`.
        source: What to open.
        shard: Which of the shards of the opened source it is; `None` if it is all of it.
    """

    name: str
    bytes: int | None
    source: Source
    shard: int | None = None


def find_source_files(names: Sequence[str], split: str) -> list[SourceFile]:
    """Finds the files that `load_documents` would read for these names, in the same order.

    Raises:
        ValueError: If there is no such file or dataset, or it cannot be read.
        ImportError: If `datasets` is not installed.
    """
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise ImportError('reading documents needs `datasets`: pip install "hf-sllm[train]"') from error

    if not names:
        raise ValueError("`data` is an empty list: name a file or a dataset on the Hub.")
    sources = [find_source(name, split) for name in names]
    paths = [Path(file).absolute() for source in sources for file in source.files]
    folder = os.path.commonpath([path.parent for path in paths]) if paths else ""
    found: list[SourceFile] = []
    for source in sources:
        if source.files:
            found += (_local(source, Path(file), folder) for file in source.files)
        else:
            opened = open_source(source, streaming=True)
            if opened is None:
                raise ValueError(f"{source.name} holds no rows.")
            name = Path(source.name).name if Path(source.name).is_dir() else source.name
            found += (SourceFile(f"{name}/{split}/{k}", None, source, k) for k in range(opened.num_shards))
    twice = [name for name, count in Counter(file.name for file in found).items() if count > 1]
    if twice:
        raise ValueError(f"`data` names {twice[0]} twice: name each file once.")
    return found


def read_tables(file: SourceFile, rows: int, text_column: str, others: Sequence[str]) -> Iterator[pyarrow.Table]:
    """The rows of a file, blank ones too, so many at a time; the last table may have fewer.

    Args:
        file: What to read.
        rows: Of each table.
        text_column: The column that holds the text.
        others: Columns that are kept beside it where the file has them.

    Raises:
        ValueError: If the file cannot be read, or has no such column of text.
    """
    for table in _tables(file, rows):
        _check_text(table, file.name, text_column)
        yield table.select([name for name in table.schema.names if name in (text_column, *others)])


def _tables(file: SourceFile, rows: int) -> Iterator[pyarrow.Table]:
    """All columns of a file; whatever its reader raises, as an error that names the file."""
    try:
        check_surrogates(file.source.name)
        stream = open_source(file.source, streaming=True)
        if stream is not None:
            shard = stream if file.shard is None else stream.shard(stream.num_shards, file.shard)
            yield from shard.with_format("arrow").iter(rows)
    except Exception as error:
        raise unreadable(file.name, error) from error


def _local(source: Source, path: Path, folder: str) -> SourceFile:
    """One of the files of a source, as a source of its own."""
    name = path.absolute().relative_to(folder).as_posix()
    arguments = {**source.arguments, "data_files": [glob.escape(str(path))]}
    return SourceFile(name, path.stat().st_size, Source(str(path), [str(path)], arguments))


def _check_text(table: pyarrow.Table, place: str, text_column: str) -> None:
    columns = table.schema.names
    if text_column not in columns:
        raise ValueError(f"{place} has no column {text_column!r}, only {', '.join(columns)}: pass `text_column`.")
    kind = str(table.schema.field(text_column).type)
    if kind not in ("string", "large_string", "string_view", "null"):
        raise ValueError(f"column {text_column!r} of {place} holds {kind}, not text.")
