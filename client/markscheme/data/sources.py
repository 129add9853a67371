"""Find out what a name stands for: a file, a folder of files, or a split on the hub."""

import hashlib
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from markscheme.data.base import DataSource, Row, SourceError
from markscheme.data.files import Csv, Json, JsonLines
from markscheme.data.tables import HubSplit, Parquet

READERS: dict[str, Callable[[Path], DataSource]] = {
    ".jsonl": JsonLines,
    ".json": Json,
    ".csv": Csv,
    ".parquet": Parquet,
}
"""The reader of each kind of file, by the ending of its name."""
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
OTHER_TABLES = (".tsv", ".xlsx", ".xls", ".arrow", ".feather", ".orc")
"""Tables that people have and that no reader takes."""
SCORED = ".scored.jsonl"
"""Ending of what `markscheme score` writes beside its input."""
_SIGNATURES = (
    (b"\x1f\x8b", "is compressed (gzip): unpack it first"),
    (b"PK\x03\x04", "is an archive (zip), as .xlsx files are too: unpack it, or save it as text"),
    (b"BZh", "is compressed (bzip2): unpack it first"),
    (b"\xfd7zXZ\0", "is compressed (xz): unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed (zstd): unpack it first"),
    (b"PAR1", "is a Parquet file: give it the ending .parquet"),
)
"""How a file begins that is none of text, and what to do with it."""
_HUB_NAME = re.compile(
    r"(?P<path>[\w.-]+(/[\w.-]+)?)(@(?P<config>[\w.-]+))?:(?P<split>[\w.+%:\[\]-]+)"
)
_NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What `datasets` writes beside its files."""


@dataclass(frozen=True, slots=True)
class Folder:
    """The files of a folder and those below it, by name, all of one kind."""

    path: Path
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def rows(self, columns: Collection[str] | None = None) -> Iterator[Row]:
        """Yield the rows of file after file; a row's name begins with that of its file."""
        for file in self.files:
            inside = file.relative_to(self.path).as_posix()
            for row in READERS[file.suffix.lower()](file).rows(columns):
                yield replace(row, name=f"{inside}:{row.name}")

    def count(self) -> int:
        """Count the rows of all files."""
        return sum(READERS[file.suffix.lower()](file).count() for file in self.files)

    def fingerprint(self) -> str:
        """Return the sha256 of the files' names and hashes."""
        digest = hashlib.sha256()
        for file in self.files:
            inside = file.relative_to(self.path).as_posix()
            digest.update(
                f"{inside}\n{READERS[file.suffix.lower()](file).fingerprint()}\n".encode()
            )
        return digest.hexdigest()


def open_source(name: str | Path) -> DataSource:
    """Return the source of a name. Hub names are reached when their rows are read.

    Args:
        name: A path, or `org/name:split` or `org/name@config:split` where there is no such path.

    Raises:
        SourceError: There is no such file or folder, or nothing in it is known.
    """
    path = Path(name)
    try:
        folder, there = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise SourceError(f"cannot open {str(name)[:200]!r}: {error}") from error
    if folder:
        return _open_folder(path)
    if path.suffix.lower() in COMPRESSED:
        raise SourceError(f"{name} is compressed: unpack it first")
    if path.suffix.lower() in OTHER_TABLES:
        raise SourceError(f"{name} is no {', '.join(READERS)} file: save it as one of them")
    reader = READERS.get(path.suffix.lower())
    _refuse_other_content(path)
    if there:
        # Any other ending is taken for JSON Lines, as it always was.
        return (reader or JsonLines)(path)
    if reader is None and isinstance(name, str) and (hub := _HUB_NAME.fullmatch(name)):
        return HubSplit(name, hub["path"], hub["config"], hub["split"])
    hint = "" if reader else "; a data set of the hub is named with its split: org/name:train"
    raise SourceError(f"there is no file or folder {name}{hint}")


def _refuse_other_content(path: Path) -> None:
    """Raise `SourceError` for a file whose content is not what its name says."""
    if path.suffix.lower() == ".parquet" or not path.is_file():  # a pipe can be read once only
        return
    with suppress(OSError), path.open("rb") as file:
        start = file.read(8)
        for signature, advice in _SIGNATURES:
            if start.startswith(signature):
                raise SourceError(f"{path} {advice}")


def _open_folder(path: Path) -> DataSource:
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in READERS
        and not file.name.endswith(SCORED)
        and file.name not in _NOT_ROWS
        and not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
        and file.is_file()
    )
    kinds = sorted({file.suffix.lower() for file in files})
    if not files:
        raise SourceError(f"the folder {path} holds no {', '.join(READERS)} file")
    if len(kinds) > 1:
        raise SourceError(
            f"the folder {path} holds files of several kinds ({', '.join(kinds)}); name one file, "
            "or a folder of one kind"
        )
    return Folder(path, tuple(files))
