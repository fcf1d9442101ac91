"""The parts of a corpus: which rows are in which file, who writes it, and how it comes to be there all at once."""

import os
import re
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pyarrow

NAME = re.compile(r"part-(\d{5,})-(\d{5,})\.parquet")
DRAFT = re.compile(r"\.part-(\d{5,})-(\d{5,})\.parquet\.[0-9a-f]+\.tmp")


class Part(NamedTuple):
    """So many rows, in order, of one source file: both are numbered from 0."""

    file: int
    number: int

    @property
    def name(self) -> str:
        return f"part-{self.file:05d}-{self.number:05d}.parquet"


class Contents(NamedTuple):
    """What is in a part that is written: rows, how many of them failed, and whether its source file ends with it."""

    rows: int
    errors: int
    last: bool


@dataclass(frozen=True)
class Shard:
    """Which of several processes this is: it writes its own parts and no others.

    Attributes:
        index: Counted from 0.
        count: How many there are.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"`shard` is {self.index}/{self.count}: the first number counts from 0, and must be below the second."
            )

    @classmethod
    def find(cls, text: str | None, environment: Mapping[str, str]) -> "Shard":
        """Reads `i/n`; by default what torchrun sets, `RANK` and `WORLD_SIZE`; or else it is the only one.

        Raises:
            ValueError: If it has another form.
        """
        if text is None and {"RANK", "WORLD_SIZE"} <= environment.keys():
            text = f"{environment['RANK']}/{environment['WORLD_SIZE']}"
        if text is None:
            return cls()
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None:
            raise ValueError(f"`shard` is {text!r}: it must be two numbers, such as 0/4 for the first of four.")
        return cls(int(found[1]), int(found[2]))

    def owns(self, part: Part, files: int) -> bool:
        """Whether it writes a part of so many source files: with enough of them whole files, so that it has to read no
        others."""
        number = part.file if files >= self.count else part.file + part.number
        return number % self.count == self.index

    def reads(self, file: int, files: int) -> bool:
        """Whether it may write parts of a source file."""
        return files < self.count or file % self.count == self.index


class Folder:
    """The folder of a corpus. What a part says of itself is read once."""

    def __init__(self, path: Path):
        self.path = path
        self._known: dict[Part, Contents] = {}

    def parts(self) -> dict[Part, Contents]:
        """All parts that are written, by whatever process."""
        import pyarrow.parquet as parquet

        there = {Part(int(found[1]), int(found[2])) for found in map(NAME.fullmatch, os.listdir(self.path)) if found}
        for part in there - self._known.keys():
            about = parquet.read_metadata(self.path / part.name)
            kept = about.metadata or {}
            self._known[part] = Contents(about.num_rows, int(kept.get(b"errors", 0)), kept.get(b"last") == b"True")
        return {part: self._known[part] for part in sorted(there)}

    def write(self, part: Part, table: "pyarrow.Table", last: bool) -> None:
        """Writes a part under another name, and gives it its own when all of it is on the disk.

        Args:
            part: Which one.
            table: With a column `error`.
            last: Whether its source file ends with it.
        """
        import pyarrow.parquet as parquet

        errors = len(table) - table.column("error").null_count
        table = table.replace_schema_metadata({"errors": str(errors), "last": str(last)})
        draft = self.path / f".{part.name}.{secrets.token_hex(4)}.tmp"
        with draft.open("wb") as file:
            parquet.write_table(table, file, compression="zstd")
            keep_on_disk(file)
        os.replace(draft, self.path / part.name)

    def remove_drafts(self, shard: Shard, files: int) -> None:
        """Removes what this process had begun to write when it was killed."""
        for found in filter(None, map(DRAFT.fullmatch, os.listdir(self.path))):
            if shard.owns(Part(int(found[1]), int(found[2])), files):
                (self.path / found[0]).unlink(missing_ok=True)


def complete_files(parts: Mapping[Part, Contents]) -> set[int]:
    """The source files of which all parts are written."""
    written = Counter(part.file for part in parts)
    return {part.file for part, about in parts.items() if about.last and written[part.file] == part.number + 1}


def keep_on_disk(file: IO) -> None:
    """Waits until what was written to a file would outlive the machine."""
    file.flush()
    os.fsync(file.fileno())
