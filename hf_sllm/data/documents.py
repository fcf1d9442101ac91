"""Documents from local files or the Hub, as a `datasets.Dataset`, or a stream, with a `text` column."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from .sources import Source, check_surrogates, find_source, open_source, unreadable

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

# Rows taken from a stream at a time: one by one is ten times slower, and many would be read for nothing.
ROWS_AT_A_TIME = 16

# Columns that are kept beside the text, where there are any.
BITS = ("bits", "bits_forgetful")
FACTS = "facts"

Names = str | Path | Sequence[str | Path]


@overload
def load_documents(
    source: Names,
    split: str = ...,
    text_column: str = ...,
    limit: int | None = ...,
    streaming: Literal[False] = ...,
) -> Dataset: ...


@overload
def load_documents(
    source: Names, split: str = ..., text_column: str = ..., limit: int | None = ..., *, streaming: Literal[True]
) -> IterableDataset: ...


@overload
def load_documents(
    source: Names, split: str = ..., text_column: str = ..., limit: int | None = ..., *, streaming: bool
) -> Dataset | IterableDataset: ...


def load_documents(
    source: Names, split: str = "train", text_column: str = "text", limit: int | None = None, streaming: bool = False
) -> Dataset | IterableDataset:
    """Reads documents. Blank ones are left out.

    Args:
        source: A local `.jsonl`, `.json`, `.txt` (each line is a document) or `.parquet` file, the first three also as
            `.gz`; a pattern such as `data/*.jsonl.gz`, whose files are taken in the order of their names; a dataset on
            the Hub by its name, or by `name:config` where it has several configs; or a list of these, whose documents
            follow each other.
        split: Which split of a dataset on the Hub; a local file is one split, whatever this says.
        text_column: The column that holds the text; it is called `text` in what is returned.
        limit: Keep the first so many documents.
        streaming: Read the documents as they are asked for, and keep none. Only the first one is looked at before:
            what is wrong with a later one is raised when its turn comes. Each file is a shard, which the workers of a
            `DataLoader` divide among them; with a `limit` all is one shard.

    Returns:
        A dataset with the column `text`, and, if the first document has them, `bits`, the information content of each,
        `bits_forgetful`, the same for a writer who forgets, and `facts` (see `casts`).

    Raises:
        ValueError: If there is no such file or dataset, it cannot be read, or it holds no text.
    """
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise ImportError('reading documents needs `datasets`: pip install "hf-sllm[train]"') from error

    if limit is not None and limit < 1:
        raise ValueError(f"`limit` is {limit}: it must be at least 1.")
    names = [source] if isinstance(source, (str, Path)) else source
    if not names:
        raise ValueError("`source` is an empty list: name a file or a dataset on the Hub.")
    sources = [find_source(str(name), split) for name in names]
    return (_stream if streaming else _load)(sources, text_column, limit)


def _load(sources: list[Source], text_column: str, limit: int | None) -> Dataset:
    """The documents of all sources, from the cache that `datasets` makes of each."""
    from datasets import concatenate_datasets

    parts: list[Dataset] = []
    for source in sources:
        left = None if limit is None else limit - sum(map(len, parts))
        if left == 0:
            break
        part = open_source(source, streaming=False)
        if part is not None:
            part = _with_text(part, source.name, text_column)
            try:
                rows = _kept_rows(part, source.name, text_column, left)
            except UnicodeDecodeError as error:  # bytes that are no text are only noticed when they are looked at
                raise unreadable(source.name, error) from error
            parts.append(part.select(rows))
    parts = [part for part in parts if len(part)]
    if not parts:
        raise _no_documents(sources)
    features = _features(parts[0][0])
    return concatenate_datasets([_with_features(part, features) for part in parts])


def _with_text(documents: Dataset, place: str, text_column: str) -> Dataset:
    """Calls the column of texts `text`."""
    _check_column(documents.column_names, place, text_column)
    kind = getattr(documents.features[text_column], "dtype", "list")
    if kind not in ("string", "large_string"):
        raise ValueError(f"column {text_column!r} of {place} holds {kind}, not text.")
    if text_column == "text":
        return documents
    if "text" in documents.column_names:
        documents = documents.remove_columns("text")
    return documents.rename_column(text_column, "text")


def _kept_rows(documents: Dataset, place: str, text_column: str, limit: int | None) -> Sequence[int]:
    """The rows of the first `limit` documents that are not blank."""
    rows: list[int] = []
    index = 0
    for batch in documents.select_columns("text").iter(1000):
        for text in batch["text"]:
            if _is_document(text, place, index, text_column):
                rows.append(index)
                if len(rows) == limit:
                    return rows
            index += 1
    # A range is taken without a table of indices.
    return range(index) if len(rows) == index else rows


def _with_features(documents: Dataset, features: Features) -> Dataset:
    """The columns that are asked for, if there are any, in the types that are asked for."""
    own = type(features)({name: kind for name, kind in features.items() if name in documents.column_names})
    documents = documents.select_columns(list(own))
    return documents if documents.features == own else documents.cast(own)


def _stream(sources: list[Source], text_column: str, limit: int | None) -> IterableDataset:
    """The documents of all sources, as they are asked for."""
    from datasets import IterableDataset

    streams = {source.name: open_source(source, streaming=True) for source in sources}
    shards: Sequence[tuple[str, int, str]] = [
        (source.name, shard, place)
        for source in sources
        if streams[source.name] is not None
        for shard, place in enumerate(_places(source, streams[source.name].num_shards))
    ]
    if limit is not None:
        # Only lists are divided among workers, and none alone would know which documents are the first ones.
        shards = tuple(shards)
    first = next(_documents(shards, streams, text_column, limit, ("text", *BITS, FACTS)), None)
    if first is None:
        raise _no_documents(sources)
    features = _features(first)
    settings = {"streams": streams, "text_column": text_column, "limit": limit, "columns": tuple(features)}
    return IterableDataset.from_generator(_documents, features=features, gen_kwargs={"shards": shards, **settings})


def _places(source: Source, shards: int) -> list[str]:
    """What each shard of a stream is called in errors."""
    if len(source.files) == shards:
        return source.files
    return [source.name if shards == 1 else f"part {shard} of {source.name}" for shard in range(shards)]


def _documents(
    shards: Sequence[tuple[str, int, str]],
    streams: dict[str, IterableDataset],
    text_column: str,
    limit: int | None,
    columns: tuple[str, ...],
) -> Iterator[dict[str, Any]]:
    """The first `limit` documents of some shards that are not blank."""
    found = 0
    for name, shard, place in shards:
        rows = streams[name].shard(streams[name].num_shards, shard)
        for index, row in enumerate(_rows(rows, place)):
            _check_column(row, place, text_column)
            if _is_document(row[text_column], place, index, text_column):
                document = {**row, "text": row[text_column]}
                yield {column: document.get(column) for column in columns}
                found += 1
                if found == limit:
                    return


def _rows(stream: IterableDataset, place: str) -> Iterator[dict[str, Any]]:
    """The rows of a stream; whatever its reader raises, as an error that names the place."""
    try:
        check_surrogates(place)
        # `iter`, unlike a loop over the stream, does not divide it among workers a second time.
        for batch in stream.iter(ROWS_AT_A_TIME):
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))
    except Exception as error:
        raise unreadable(place, error) from error


def _features(document: dict[str, Any]) -> Features:
    """The columns of documents of which this is the first."""
    from datasets import Features, List, Value

    kept: dict[str, Any] = {name: Value("float64") for name in BITS if isinstance(document.get(name), (int, float))}
    if isinstance(document.get(FACTS), list):
        kept[FACTS] = List(List(Value("int64")))
    return Features({"text": Value("string"), **kept})


def _is_document(text: Any, place: str, index: int, text_column: str) -> bool:
    """Whether a row's text is not blank."""
    if text is None:
        raise ValueError(f"row {index} of {place} has no text in column {text_column!r}.")
    if not isinstance(text, str):
        raise ValueError(f"column {text_column!r} of {place} holds {type(text).__name__}, not text.")
    return text != "" and not text.isspace()


def _check_column(columns: Iterable[str], place: str, text_column: str) -> None:
    if text_column not in columns:
        raise ValueError(f"{place} has no column {text_column!r}, only {', '.join(columns)}: pass `text_column`.")


def _no_documents(sources: list[Source]) -> ValueError:
    return ValueError(f"{', '.join(source.name for source in sources)} holds no documents.")
