"""Read rows from the files, folders and data sets that people keep prompts and rollouts in.

    open_source("prompts.parquet")        a .jsonl, .json, .csv or .parquet file
    open_source("prompts/")               a folder of such files, all of one kind
    open_source("org/name:train")         a split of a data set on the Hugging Face hub

Rows are read one after the other: memory does not grow with the file. A row is a plain object by
column; `RowReader` turns it into a model and says which row and column are at fault.
"""

from markscheme.data.base import (
    MAX_ROW_BYTES,
    DataSource,
    Row,
    RowError,
    SourceError,
    as_json,
    windows,
)
from markscheme.data.columns import Columns, Records, RowReader
from markscheme.data.sources import open_source

__all__ = [
    "MAX_ROW_BYTES",
    "Columns",
    "DataSource",
    "Records",
    "Row",
    "RowError",
    "RowReader",
    "SourceError",
    "as_json",
    "open_source",
    "windows",
]
