"""Writes and embeds corpora: source files in, parts in a folder out, by one process or several, in one run or several.

What maps rows to results (`texts.py`, `latents.py`) knows nothing of files, and what is here knows nothing of models
but how to load one. Another engine, on many machines, can call the same maps.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TimeElapsedColumn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_sllm.data.source_files import SourceFile, find_source_files, read_tables

from . import manifest
from .latents import EmbedSettings, SentenceEmbedder
from .parts import Folder, Part, Shard, complete_files
from .results import Corpus
from .texts import TextWriter, WriteSettings

if TYPE_CHECKING:
    import pyarrow

Item = TypeVar("Item")

# Seconds between two manifests while parts are written; what one does not name yet is in the next.
MANIFEST_EVERY = 10.0

VERSIONS_OF = ("hf-sllm", "torch", "transformers")


@dataclass(frozen=True)
class Job:
    """Which rows are mapped by which model, and where the results go.

    Attributes:
        model: Path or name of the model.
        data: Sources, see `hf_sllm.data.load_documents`.
        output: The folder of the parts.
        split: The split of a dataset on the Hub.
        text_column: The column that holds the text.
        id_column: The column that holds a name of each row; by default `id`, where there is one. A row without a name
            gets that of its source file and its number in it.
        part_rows: Rows of a part. A run that is killed loses the part that it has not finished.
        batch_size: Rows at a time. It changes results by rounding only.
        dtype: Of the weights, such as `bfloat16`; `auto` is the checkpoint's.
        shard: Which of several processes this is.
        progress: Whether to show a progress bar, on standard error.
    """

    model: str
    data: Sequence[str]
    output: Path
    split: str = "train"
    text_column: str = "text"
    id_column: str | None = None
    part_rows: int = 1000
    batch_size: int = 32
    dtype: str = "auto"
    shard: Shard = Shard()
    progress: bool = True

    def __post_init__(self):
        if isinstance(self.data, str | Path):
            raise ValueError(f"`data` is {str(self.data)!r}: it must be a list of sources.")
        for name in ("part_rows", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}: it must be at least 1.")
        if self.dtype != "auto" and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"`dtype` is {self.dtype!r}: it must be `auto`, or one such as `bfloat16`.")


def write_corpus(job: Job, settings: WriteSettings) -> Corpus:
    """Continues each row of some data with an SLLM. Parts that are there are left as they are.

    Args:
        job: Model, data and where the parts go.
        settings: How texts are written.

    Raises:
        ValueError: If the data cannot be read, the model is no SLLM, or the folder has parts that came about in
            another way.
    """
    return run(job, "write", lambda model, tokenizer: TextWriter(model, tokenizer, settings, job.batch_size))


def embed_corpus(job: Job, settings: EmbedSettings) -> Corpus:
    """Makes the latents of each sentence of some data. Parts that are there are left as they are.

    Args:
        job: Model, data and where the parts go.
        settings: How latents are kept.

    Raises:
        ValueError: If the data cannot be read, the model has no latents, or the folder has parts that came about in
            another way.
    """
    return run(job, "embed", lambda model, tokenizer: SentenceEmbedder(model, tokenizer, settings, job.batch_size))


def run(
    job: Job, task: str, make_map: Callable[[PreTrainedModel, PreTrainedTokenizerBase], TextWriter | SentenceEmbedder]
) -> Corpus:
    """Makes the parts of this process that are not there.

    Args:
        job: Model, data and where the parts go.
        task: What the manifest calls it.
        make_map: Makes what maps rows to results from the model and its tokenizer.
    """
    import pyarrow as pa

    files = find_source_files(job.data, job.split)
    about: dict[str, Any] = {
        "task": task,
        "model": job.model,
        "data": list(job.data),
        "part_rows": job.part_rows,
        "text_column": job.text_column,
        "id_column": job.id_column,
        "versions": {name: version(name) for name in VERSIONS_OF},
        "files": [{"name": file.name, "bytes": file.bytes} for file in files],
    }
    job.output.mkdir(parents=True, exist_ok=True)
    manifest.check(job.output, about)  # the model is not loaded in vain
    model, tokenizer = load(job.model, job.dtype)
    mapped = make_map(model, tokenizer)
    about["settings"] = {"dtype": str(model.dtype).removeprefix("torch."), **asdict(mapped.settings)}
    about["weights"] = manifest.fingerprint(model)

    folder = Folder(job.output)
    found = manifest.update(folder, about)
    folder.remove_drafts(job.shard, len(files))
    named_at = time.monotonic()
    try:
        with Bar(task, job.progress) as bar:
            for part, table, last in missing_parts(job, files, folder):
                bar.show_file(part.file, len(files))
                results = mapped(rows_of(table, files[part.file], part.number * job.part_rows, job), bar.advance)
                bar.count_errors(results["error"])
                folder.write(part, pa.table(results, schema=mapped.schema), last)
                if time.monotonic() - named_at > MANIFEST_EVERY:
                    manifest.update(folder, about)
                    named_at = time.monotonic()
    finally:
        found = manifest.update(folder, about)
    return found


def load(name: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer, on the GPU that is this process's own, if there is one."""
    config = AutoConfig.from_pretrained(name)
    auto_class = AutoModel if config.model_type == "sentence_vae" else AutoModelForCausalLM
    model: Any = auto_class.from_pretrained(name, config=config, dtype=dtype)
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), AutoTokenizer.from_pretrained(name)


def missing_parts(
    job: Job, files: Sequence[SourceFile], folder: Folder
) -> Iterator[tuple[Part, "pyarrow.Table", bool]]:
    """The parts that this process has to make, each with its rows and whether its source file ends with it.

    A source file without rows has one part, which has none either: so it is seen that nothing is missing.
    """
    import pyarrow as pa

    columns = {job.id_column or "id": pa.string(), job.text_column: pa.string()}
    nothing = pa.schema(columns).empty_table()
    there = folder.parts()
    complete = complete_files(there)
    for index, file in enumerate(files):
        if index in complete or not job.shard.reads(index, len(files)):
            continue
        tables = read_tables(file, job.part_rows, job.text_column, list(columns))
        for number, (table, last) in enumerate(with_last(tables, nothing)):
            part = Part(index, number)
            if part not in there and job.shard.owns(part, len(files)):
                yield part, table, last


def with_last(items: Iterable[Item], nothing: Item) -> Iterator[tuple[Item, bool]]:
    """The items, each with whether it is the last; where there are none, that which stands for nothing."""
    left = iter(items)
    current = next(left, nothing)
    for following in left:
        yield current, False
        current = following
    yield current, True


def rows_of(table: "pyarrow.Table", file: SourceFile, first: int, job: Job) -> dict[str, list]:
    """The columns `id` and `text` of rows, of which the first has that number in its source file.

    Raises:
        ValueError: If the job names a column of ids that is not there.
    """
    name = job.id_column or "id"
    if job.id_column is not None and name not in table.schema.names:
        raise ValueError(f"{file.name} has no column {name!r}: pass another `id_column`, or none.")
    given = table.column(name).to_pylist() if name in table.schema.names else [None] * len(table)
    ids = [f"{file.name}:{first + place}" if value is None else str(value) for place, value in enumerate(given)]
    return {"id": ids, "text": table.column(job.text_column).to_pylist()}


class Bar:
    """A progress bar on standard error: which source file, and how many rows this run has done.

    Args:
        title: What is done.
        shown: Whether it is shown at all.
    """

    COLUMNS = (
        "[progress.description]{task.description}",
        BarColumn(),
        "file {task.fields[file]} of {task.fields[files]}",
        "{task.fields[rows]:,} rows, {task.fields[speed]:.1f} rows/s, {task.fields[errors]:,} failed",
        TimeElapsedColumn(),
    )

    def __init__(self, title: str, shown: bool):
        self._progress = Progress(*self.COLUMNS, console=Console(stderr=True), disable=not shown)
        self._task = self._progress.add_task(title, total=None, file=0, files=0, rows=0, speed=0.0, errors=0)
        self._begun = time.monotonic()
        self._rows = self._errors = 0

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show_file(self, file: int, files: int) -> None:
        """Source files are numbered from 0; before the last one the bar shows how many are done."""
        self._progress.update(
            self._task, total=files if files > 1 else None, completed=file, file=file + 1, files=files
        )

    def advance(self, rows: int) -> None:
        self._rows += rows
        speed = self._rows / max(time.monotonic() - self._begun, 1e-9)
        self._progress.update(self._task, rows=self._rows, speed=speed)

    def count_errors(self, errors: Sequence[str | None]) -> None:
        self._errors += sum(error is not None for error in errors)
        self._progress.update(self._task, errors=self._errors)
