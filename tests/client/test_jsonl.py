"""Lines end at the line feed alone, wherever a stream's pieces end; what is unreadable is named."""

import asyncio
import json
import re
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markscheme.cli.app import read_groups
from markscheme.jsonl import LineError, parse, read_lines, split_lines, split_lines_async
from markscheme.teaching import read_prompts, read_ropd_index

INSIDE = "\x0b\x0c\r\x1c\x1d\x1e\x85\u2028\u2029"
"""Where ``str.splitlines`` ends a line too."""
CLIENT = Path(__file__).parents[2] / "client"


def in_pieces(content: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(content) + 1) for cut in cuts), len(content)]
    return [content[start:end] for start, end in zip(places, places[1:], strict=False)]


def read_async(chunks: list[bytes]) -> list[str]:
    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def run() -> list[str]:
        return [line async for line in split_lines_async(stream())]

    return asyncio.run(run())


@given(
    st.lists(st.text(st.sampled_from("aé€😀\n" + INSIDE)), max_size=5),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_lines_are_the_same_however_a_stream_is_cut(texts: list[str], cuts: list[int]) -> None:
    content = "\n".join(texts)
    *complete, rest = content.split("\n")
    rest = rest.removesuffix("\r")
    wanted = [*(line.removesuffix("\r") for line in complete), *([rest] if rest else [])]
    chunks = in_pieces(content.encode(), cuts)
    assert list(split_lines(chunks)) == wanted
    assert read_async(chunks) == wanted
    assert list(split_lines(chunks, complete_only=True)) == wanted[: len(complete)]


def test_pieces_of_text_are_cut_as_bytes_are() -> None:
    assert list(split_lines(["a\u2028", "b\r", "\nc"])) == ["a\u2028b", "c"]


def test_a_stream_is_never_held_whole() -> None:
    line = b"x" * 999 + b"\n"
    stream: Iterator[bytes] = (line * 64 for _ in range(64))
    tracemalloc.start()
    try:
        assert sum(1 for _ in split_lines(stream)) == 64 * 64
        assert tracemalloc.get_traced_memory()[1] < 40 * 64 * len(line) // 10
    finally:
        tracemalloc.stop()


def test_a_line_may_come_byte_by_byte() -> None:
    content = ("é" * 100_000 + "\n").encode()
    assert list(split_lines(content[i : i + 1] for i in range(len(content)))) == ["é" * 100_000]


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_files_may_begin_with_a_mark_and_end_lines_as_windows_does(
    start: bytes, end: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(start + b'{"a": 1}' + end + end + "\u2028".encode() + end)
    assert list(read_lines(file)) == ['{"a": 1}', "", "\u2028"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\n".encode("utf-16"), "line 1: this is UTF-16 text; save it as UTF-8"),
        ("a\n".encode("utf-32"), "line 1: this is UTF-32 text; save it as UTF-8"),
        (b"\xfe\xff\x00a\x00\n", "line 1: this is UTF-16"),
        ("a\nb\n".encode("utf-16-le"), "line 1: it holds NUL bytes"),
        (b"a\nb\xe9c\n", r"line 2: not UTF-8 \(byte 0xe9 at byte 2\)"),
        (b"a\n\xe2\x80", "line 2: not UTF-8"),
    ],
)
def test_a_file_that_is_not_utf_8_is_told_with_its_line(
    content: bytes, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    with pytest.raises(LineError, match=rf"a\.jsonl, {message}"):
        list(read_lines(file))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"not JSON \(Expecting property name .* at column 2\)"),
        ('"a', "not JSON"),
        ("NaN", "NaN is no number"),
        ("\ufeff1", "a byte order mark within the file"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, r"^not usable JSON \(a number is too long\)$"),
        ("1 2", "Extra data"),
    ],
)
def test_what_is_not_json_says_why(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(line)


PROMPT = f"Name a colour.{INSIDE}One word."


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    ("read", "row"),
    [
        (read_groups, {"prompt": PROMPT, "rollouts": [PROMPT, {"text": PROMPT}]}),
        (read_prompts, {"prompt": PROMPT, "teacher_responses": [PROMPT]}),
        (
            read_ropd_index,
            {
                "schema_version": "ropd.teacher_index.v2",
                "raw_prompt_hash": "h",
                "teacher_answers": [PROMPT],
            },
        ),
    ],
)
def test_every_reader_of_files_keeps_what_is_inside_a_line(
    read: Callable[[Path], object], row: dict[str, object], start: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(start + 2 * (json.dumps(row, ensure_ascii=False) + "\r\n").encode())
    assert json.dumps(PROMPT)[1:-1] in json.dumps(
        read(file), default=lambda model: model.model_dump()
    )
    file.write_bytes(json.dumps(row).encode() + b'\n{"prompt": "x\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: not JSON"):
        read(file)
    file.write_bytes(json.dumps(row).encode("utf-16"))
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1: this is UTF-16"):
        read(file)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p"}, "rollouts: is missing"),
        ({"prompt": "p", "rollouts": "abc"}, "rollouts: must be a list"),
        ({"prompt": "p", "rollouts": ["a", 3]}, r"rollouts\[1\]: must be an object"),
        ({"prompt": "p", "rollouts": ["a", {"text": 1}]}, r"rollouts\[1\]\.text: must be a text"),
        ({"prompt": 5, "rollouts": ["a"]}, "prompt: must be a text or a list of messages"),
        (
            {"prompt": [{"role": "user", "content": "a\0"}], "rollouts": ["a"]},
            r"prompt\[0\]\.content: .*NUL character or half of a surrogate pair",
        ),
        (["p"], "must be a JSON object"),
    ],
)
def test_a_groups_fault_is_told_with_its_place(row: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=f"line 1: {message}$"):
        read_groups(file)


def test_columns_that_are_empty_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    message = {
        "role": "user",
        "content": [{"type": "text", "text": "p", "image": None}],
        "tool_calls": None,
    }
    file.write_text(
        json.dumps(
            {
                "id": None,
                "prompt": [message],
                "rubric_id": None,
                "teacher_responses": None,
                "rollouts": ["a"],
            }
        )
    )
    (group,) = read_groups(file)
    (line,) = read_prompts(file)
    assert group.id == "line-1"
    assert not isinstance(group.prompt, str)
    assert group.prompt == line.prompt
    assert group.prompt[0].content == "p"


def test_nothing_splits_lines_by_itself() -> None:
    """What ``str`` and httpx call a line is not what JSON Lines calls one."""
    own = re.compile(r"\b(splitlines|a?iter_lines|readlines?)\b(?!`)")
    found = [
        f"{file.relative_to(CLIENT)}: {line}"
        for file in sorted(CLIENT.rglob("*.py"))
        for line in file.read_text("utf-8").split("\n")
        if own.search(line)
    ]
    assert found == []
