"""Documents from a local file or the Hub, as a `datasets.Dataset` with a `text` column."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

# How `datasets` calls the reader of each kind of file; a trailing .gz makes no difference to it.
READERS = {".jsonl": "json", ".json": "json", ".txt": "text", ".parquet": "parquet"}


def load_documents(
    source: str | Path, split: str = "train", text_column: str = "text", limit: int | None = None
) -> Dataset:
    """Reads documents.

    Args:
        source: A local `.jsonl`, `.json`, `.txt` (each line that is not blank is a document) or `.parquet` file, the
            first three also as `.gz`; or the name of a dataset on the Hub.
        split: Which split of a dataset on the Hub; a local file is one split, whatever this says.
        text_column: The column that holds the text; it is called `text` in what is returned.
        limit: Keep the first so many documents.

    Returns:
        A dataset with the column `text`, and `bits`, the information content of each document, if the source has it.

    Raises:
        ValueError: If there is no such file or dataset, it cannot be read, or it holds no text.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` is {limit}: it must be at least 1.")
    documents = _read(str(source), split)
    if text_column not in documents.column_names:
        raise ValueError(
            f"{source} has no column {text_column!r}, only {', '.join(documents.column_names)}: pass `text_column`."
        )
    if text_column != "text":
        if "text" in documents.column_names:
            documents = documents.remove_columns("text")
        documents = documents.rename_column(text_column, "text")
    documents = documents.select_columns([name for name in ("text", "bits") if name in documents.column_names])
    if limit is not None:
        documents = documents.select(range(min(limit, len(documents))))
    if len(documents) == 0:
        raise ValueError(f"{source} holds no documents.")
    kind = getattr(documents.features["text"], "dtype", "list")
    if kind not in ("string", "large_string"):
        raise ValueError(f"column {text_column!r} of {source} holds {kind}, not text.")
    if None in documents["text"][:]:
        raise ValueError(f"row {documents['text'][:].index(None)} of {source} has no text in column {text_column!r}.")
    return documents


def _read(source: str, split: str) -> Dataset:
    """A split of a dataset with the columns that the source has."""
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetGenerationError
    except ImportError as error:
        raise ImportError('reading documents needs `datasets`: pip install "hf-sllm[train]"') from error

    path = Path(source).expanduser()
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if path.is_file() and suffix not in READERS:
        raise ValueError(
            f"{source} ends in {suffix!r}: a file of documents ends in {', '.join(READERS)}, or that and .gz."
        )
    if not path.is_file() and suffix in READERS:
        raise ValueError(f"there is no file {source} (looked in {Path.cwd()}).")
    try:
        if not path.is_file():
            return load_dataset(source, split=split)
        documents = load_dataset(READERS[suffix], data_files=str(path), split="train")
    except (OSError, ValueError, DatasetGenerationError) as error:
        cause = error.__cause__ or error
        raise ValueError(f"{source} cannot be read as a dataset: {type(cause).__name__}: {cause}") from error
    if READERS[suffix] == "text":
        documents = documents.filter(lambda text: bool(text.strip()), input_columns="text")
    return documents
