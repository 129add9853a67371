"""Rows come out of every kind of file alike; what cannot be read is named, and nothing crashes."""

import gzip
import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from markscheme.data import MAX_ROW_BYTES, RowError, SourceError, base, open_source

ROWS = [{"prompt": "Größe?", "n": 1}, {"prompt": "b\u2028c", "n": None}]


def values(name: str | Path) -> list[dict[str, Any]]:
    return [row.read() for row in open_source(name).rows()]


def write_parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return path


def test_the_same_rows_come_out_of_every_kind_of_file(tmp_path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines), "utf-8")
    (tmp_path / "bom.jsonl").write_text("\ufeff" + "\r\n".join(lines), "utf-8", newline="")
    (tmp_path / "array.json").write_text(json.dumps(ROWS, indent=1), "utf-8")
    (tmp_path / "lines.json").write_text("\n".join(lines), "utf-8")
    write_parquet(tmp_path / "a.parquet", ROWS)
    for name in ("a.jsonl", "bom.jsonl", "array.json", "lines.json", "a.parquet"):
        source = open_source(tmp_path / name)
        assert source.count() == 2
        assert [(row["prompt"], row.get("n")) for row in values(tmp_path / name)] == [
            ("Größe?", 1),
            ("b\u2028c", None),
        ], name


def test_a_csv_cell_is_text_or_null_and_may_span_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('\ufeff\r\nprompt,note\r\n"a, ""b""\nc",\r\n\r\nd,e\r\n', "utf-8", newline="")
    rows = list(open_source(file).rows())
    assert [row.read() for row in rows] == [
        {"prompt": 'a, "b"\nc', "note": None},
        {"prompt": "d", "note": "e"},
    ]
    assert [row.place for row in rows] == [f"{file}, row 1 (line 3)", f"{file}, row 2 (line 6)"]
    assert all(row.untyped for row in rows)


def test_a_folder_is_its_files_in_order_without_results_and_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name, prompt in (("b.jsonl", "2"), ("a.jsonl", "1"), ("deep/c.jsonl", "3")):
        (tmp_path / name).write_text(json.dumps({"prompt": prompt}) + "\n")
    (tmp_path / "a.scored.jsonl").write_text("{}\n")
    (tmp_path / ".hidden.jsonl").write_text("{}\n")
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "README.md").write_text("x")
    rows = list(open_source(tmp_path).rows())
    assert [row.read()["prompt"] for row in rows] == ["1", "2", "3"]
    assert [row.name for row in rows] == [
        "a.jsonl:line-1",
        "b.jsonl:line-1",
        "deep/c.jsonl:line-1",
    ]
    assert open_source(tmp_path).count() == 3


def test_a_folder_of_several_kinds_or_of_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no .jsonl"):
        open_source(tmp_path)
    (tmp_path / "a.csv").write_text("prompt\nx\n")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(SourceError, match=r"several kinds \(.csv, .json\)"):
        open_source(tmp_path)


def test_a_hub_name_is_read_through_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = datasets.load_dataset

    def load(path: str, config: str | None, *, split: str) -> Any:
        asked.append((path, config, split))
        return real("json", data_files=str(tmp_path / "d.jsonl"), split="train")

    (tmp_path / "d.jsonl").write_text(
        json.dumps({"prompt": [{"role": "user", "content": "a", "name": None}]}) + "\n"
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "load_dataset", load)
    source = open_source("org/name@main:train[:10]")
    assert asked == []
    assert (source.count(), [row.read() for row in source.rows()]) == (
        1,
        [{"prompt": [{"role": "user", "content": "a"}]}],
    )
    assert asked == [("org/name", "main", "train[:10]")]
    row = next(open_source("org/name:train").rows())
    assert (row.place, row.name) == ("org/name:train, row 1", "row-1")
    assert asked[1:] == [("org/name", None, "train")]
    assert source.fingerprint() == open_source("org/name:train").fingerprint()


def test_a_hub_that_fails_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_words: Any, **_more: Any) -> Any:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'org/name' doesn't exist\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(SourceError, match="cannot read org/name:train from the hub: Dataset 'org"):
        open_source("org/name:train").count()


def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_parquet(tmp_path / "a.parquet", ROWS)

    def missing(module: str) -> Any:
        raise ModuleNotFoundError(module)

    monkeypatch.setattr(base.importlib, "import_module", missing)
    for name in (file, "org/name:train"):
        with pytest.raises(SourceError, match=r"pip install 'markscheme\[data\]'"):
            open_source(name).count()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": 1}\n{oops\n', "line 2: not JSON"),
        ("a.jsonl", b"\xff\xfea\0", "line 1: this is UTF-16 text"),
        ("a.jsonl", b'{"a": "\xd8"}\n', "line 1: not UTF-8"),
        ("a.jsonl", b"[1]\n", "line 1: must be a JSON object"),
        ("a.jsonl", b'{"a":' * 100_000, "nested too deeply"),
        ("a.jsonl", b"x" * (MAX_ROW_BYTES + 1), "line 1: longer than 32 MiB"),
        ("a.json", b'[{"a": 1}, {"b" 2}]', "row 2: not JSON"),
        ("a.json", b'[{"a": 1}', "row 2: not JSON"),
        ("a.json", b'[{"a": 1} {"a": 2}]', "row 2: not JSON"),
        ("a.json", b'[{"a": 1}] x', "row 2: not JSON"),
        ("a.json", b'[{"a": NaN}]', "row 1: not JSON"),
        ("a.json", b'[{"a": tru}, ' + b'{"a": 1},' * 50_000, "row 1: not JSON"),
        ("a.json", b'[{"a": %b}]' % (b"9" * 5000), "row 1: not usable JSON .a number is too long"),
        ("a.json", b"[3]", "row 1: must be a JSON object"),
        ("a.json", b"[" * 100_000, "row 1: not usable JSON"),
        ("a.json", b'["' + b"x" * (MAX_ROW_BYTES + 1), "row 1: larger than 32 MiB"),
        ("a.json", b'[{"a": "\xd8"}]', "row 1: not UTF-8"),
        ("a.csv", b"a,b\n1\n", r"row 1 \(line 2\): has 1 cells, and the header names 2 columns"),
        ("a.csv", b'a,b\n1,2\n3,"4\n', "line 4: not CSV|line 3: not CSV"),
        ("a.csv", b'a\n"' + b"x" * (MAX_ROW_BYTES + 1), "not CSV .field larger"),
        ("a.csv", b"a,a\n1,2\n", "the column 'a' is there twice"),
        ("a.csv", b"a,b\n1,\xd8\n", "not UTF-8"),
        ("a.csv", b"\xff\xfea\0,\0b\0", "not UTF-8"),
        ("a.parquet", b"prompt\nx\n", "is not a Parquet file"),
        ("a.parquet", b"", "is not a Parquet file"),
        ("a.parquet", b"PAR1" + b"\xff" * 100 + b"PAR1", "is not a Parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_row(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(SourceError, match=message) as raised:
        values(file)
    assert str(raised.value).startswith(str(file))
    assert len(str(raised.value)) < 500


def test_a_parquet_file_that_breaks_off_keeps_the_rows_before(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", [{"prompt": f"p{i}"} for i in range(2000)])
    content = bytearray(file.read_bytes())
    content[20:200] = b"\xff" * 180
    file.write_bytes(content)
    with pytest.raises(SourceError, match=r"a.parquet(, after row \d+: not readable| is not a)"):
        values(file)


def test_one_bad_line_does_not_hide_the_next(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n\xff\n{"a": 3}\n')
    first, second, third = open_source(file).rows()
    with pytest.raises(RowError, match="line 2: not UTF-8"):
        second.read()
    assert (first.read(), third.read()) == ({"a": 1}, {"a": 3})


@pytest.mark.parametrize("name", ["a.jsonl.gz", "train.parquet.zst"])
def test_a_compressed_file_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(SourceError, match="is compressed: unpack it first"):
        open_source(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        # With the time in it, each process would have another name for the test.
        (gzip.compress(b'{"prompt": "a"}', mtime=0), "compressed .gzip.: unpack it"),
        (b"PK\x03\x04xl/workbook.xml", "archive .zip."),
        (b"PAR1\x15\x04", "Parquet file: give it the ending .parquet"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a"])
def test_a_file_that_is_none_of_text_is_named_by_its_content(
    tmp_path: Path, name: str, content: bytes, advice: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=advice):
        open_source(tmp_path / name)


def test_text_that_a_table_holds_as_bytes_is_text(tmp_path: Path) -> None:
    rows = {"prompt": pyarrow.array(["Größe?".encode()]), "hash": pyarrow.array([b"\xff\xfe"])}
    parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == [{"prompt": "Größe?", "hash": "//4="}]


@pytest.mark.parametrize("name", ["none.jsonl", "none", "org/name", "x\0y", "a" * 5000])
def test_what_is_not_there_is_said(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="there is no file or folder|cannot open"):
        open_source(name)


def test_a_fingerprint_changes_with_the_content_and_with_the_files(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n")
    before, folder = open_source(file).fingerprint(), open_source(tmp_path).fingerprint()
    file.rename(tmp_path / "b.jsonl")
    assert open_source(tmp_path / "b.jsonl").fingerprint() == before
    assert open_source(tmp_path).fingerprint() != folder
    (tmp_path / "b.jsonl").write_text("{}\n\n")
    assert open_source(tmp_path / "b.jsonl").fingerprint() != before


def test_a_json_array_is_read_across_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"n": i, "text": 'ü\\",' * (i % 7)} for i in range(200)]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    for size in (1, 2, 3, 7, 64):
        monkeypatch.setattr("markscheme.data.files.CHUNK_CHARACTERS", size)
        assert values(file) == rows


def test_a_table_decodes_only_what_is_needed_and_names_all_its_columns(tmp_path: Path) -> None:
    far = pyarrow.array([2**30], pyarrow.date32())  # a day that Python has no date for
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["a"], "day": far}), file)
    (row,) = open_source(file).rows({"prompt", "other"})
    assert (row.read(), row.columns) == ({"prompt": "a"}, ("prompt", "day"))
    (none,) = open_source(file).rows({"other"})
    assert none.read() == {"prompt": "a"}
    with pytest.raises(RowError, match="after row 0: not readable"):
        values(file)


@pytest.mark.parametrize("name", ["a.tsv", "a.XLSX", "a.arrow"])
def test_a_table_of_another_kind_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(SourceError, match=r"is no \.jsonl, \.json, \.csv, \.parquet file"):
        open_source(tmp_path / name)


def test_cells_that_json_has_no_type_for_become_text_or_numbers(tmp_path: Path) -> None:
    row = {
        "when": datetime(2026, 1, 2, 3, tzinfo=UTC),
        "day": date(2026, 1, 2),
        "lasted": timedelta(minutes=1),
        "weight": [{"exact": Decimal("2.50"), "whole": Decimal("3")}],
        "image": {"bytes": b"\x89PNG", "path": None},
    }
    write_parquet(tmp_path / "a.parquet", [row])
    assert values(tmp_path / "a.parquet") == [
        {
            "when": "2026-01-02T03:00:00+00:00",
            "day": "2026-01-02",
            "lasted": 60.0,
            "weight": [{"exact": 2.5, "whole": 3}],
            "image": {"bytes": "iVBORw=="},
        }
    ]


def test_a_table_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["prompt", "prompt"])
    parquet.write_table(twice, file)
    with pytest.raises(SourceError, match="a.parquet: the column 'prompt' is there twice"):
        values(file)
