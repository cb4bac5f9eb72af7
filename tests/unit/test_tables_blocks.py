"""Blocks of whole lines, cut from files that arrive in any pieces, and where each line came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tables import codes
from pipeline.tables.blocks import BOM, Block, BlockCutter

Line = tuple[bytes, str, int]
"""Bytes without newline, source file, physical line from 1."""


@dataclass(frozen=True)
class File:
    name: str
    chunks: list[bytes]

    @property
    def lines(self) -> list[Line]:
        """The oracle: what the file says when it is read whole."""
        data = b"".join(self.chunks)
        if data.startswith(b"\xef\xbb\xbf"):
            data = data[3:]
        found = data.split(b"\n")
        if found[-1] == b"":
            found.pop()
        return [(line, self.name, number) for number, line in enumerate(found, start=1)]


@dataclass(frozen=True)
class Single:
    """One line of some file, with its number."""

    line: bytes
    name: str
    number: int

    @property
    def lines(self) -> list[Line]:
        return [(self.line, self.name, self.number)]


def cut(block_bytes: int, sources: Iterable[File | Single], recycled: bool = False) -> Iterator[Block]:
    """The blocks of some sources; `recycled` gives each back when the caller asks for the next one."""
    cutter = BlockCutter(block_bytes)

    def handed(blocks: Iterator[Block]) -> Iterator[Block]:
        for block in blocks:
            yield block
            if recycled:
                # Whoever still looks into it shall see nonsense.
                block.data[:] = 0xFF
                cutter.recycle(block)

    for source in sources:
        if isinstance(source, File):
            yield from handed(cutter.add(iter(source.chunks), source.name))
        else:
            yield from handed(cutter.add_line(source.line, source.name, source.number))
    yield from handed(cutter.rest())
    assert list(cutter.rest()) == []


def lines_of(blocks: Iterable[Block]) -> list[Line]:
    found: list[Line] = []
    for block in blocks:
        data = block.data.tobytes()
        assert data[block.size : block.size + codes.PADDING] == b"\0" * codes.PADDING
        assert block.size > 0
        assert data[block.size - 1 : block.size] == b"\n"
        firsts = [segment.first for segment in block.segments]
        assert firsts[0] == 0
        assert firsts == sorted(firsts)
        for index, line in enumerate(data[: block.size - 1].split(b"\n")):
            found.append((line, *block.origin(index)))
    return found


LINES = st.one_of(
    st.sampled_from([b"", b"{}", b"\r", BOM, BOM + b"{}", b"\xef", b"\xbb\xbf", b"\0", b"x" * 50]),
    st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")),
)
NAMES = st.sampled_from(["a.ndjson", "b.ndjson", "c/d.ndjson"])


@st.composite
def files(draw: st.DrawFn) -> File:
    data = draw(st.sampled_from([b"", b"", BOM, BOM + BOM, BOM[:2], BOM[:1]]))
    data += b"\n".join(draw(st.lists(LINES, max_size=12)))
    if draw(st.booleans()):
        data += b"\n"
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    # The same place twice is an empty chunk.
    chunks = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    return File(draw(NAMES), chunks)


SINGLES = st.builds(Single, LINES, NAMES, st.one_of(st.integers(1, 9), st.just(10**9)))


@given(st.lists(st.one_of(files(), SINGLES), max_size=8), st.integers(1, 80), st.booleans())
@settings(max_examples=400)
def test_all_lines_come_out_in_order_with_their_origins(
    sources: list[File | Single], block_bytes: int, recycled: bool
) -> None:
    expected = [line for source in sources for line in source.lines]
    assert lines_of(cut(block_bytes, sources, recycled)) == expected


@given(st.lists(files(), max_size=5), st.integers(1, 80))
def test_the_cuts_of_the_source_do_not_matter(sources: list[File], block_bytes: int) -> None:
    whole = [File(source.name, [b"".join(source.chunks)]) for source in sources]
    bytewise = [File(each.name, [bytes([byte]) for byte in each.chunks[0]]) for each in whole]
    found = lines_of(cut(block_bytes, sources))
    assert found == lines_of(cut(block_bytes, whole)) == lines_of(cut(block_bytes, bytewise))


@given(st.lists(files(), max_size=5), st.integers(1, 80))
def test_a_block_is_larger_than_wanted_by_a_chunk_or_a_line_at_most(
    sources: list[File], block_bytes: int
) -> None:
    longest = max((len(line) + 1 for source in sources for line, _, _ in source.lines), default=0)
    chunk = max((len(chunk) for source in sources for chunk in source.chunks), default=0)
    for block in cut(block_bytes, sources):
        assert block.size <= block_bytes + longest + chunk


def test_blocks_are_handed_out_while_a_file_arrives() -> None:
    """Bounded memory: nothing waits for a file's end."""
    cutter = BlockCutter(100)
    taken = 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield b'{"a":1}\n{"b"'
            yield b":2}\n"

    sizes = []
    for block in cutter.add(chunks(), "a"):
        sizes.append(block.size)
        assert 16 * taken - sum(sizes) < 116
    assert all(80 <= size <= 116 for size in sizes)


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("second", range(4))
def test_a_bom_is_removed_at_the_files_start_however_it_is_cut(first: int, second: int) -> None:
    """And in no other line: there it is content, for the kernel to refuse."""
    data = BOM + b"{}\n" + BOM + b"{}\n"
    a, b = sorted((first, second))
    sources = [File(name, [data[:a], data[a:b], b"", data[b:]]) for name in ("a", "b")]
    assert lines_of(cut(5, sources)) == [
        (b"{}", "a", 1),
        (BOM + b"{}", "a", 2),
        (b"{}", "b", 1),
        (BOM + b"{}", "b", 2),
    ]


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (BOM, []),
        (BOM + b"\n", [b""]),
        (BOM[:1], [BOM[:1]]),
        (BOM[:2], [BOM[:2]]),
        (BOM[:2] + b"\n", [BOM[:2]]),
        (BOM + BOM, [BOM]),
        (b"\n", [b""]),
        (b"\n\n{}", [b"", b"", b"{}"]),
        (b"{}\r\n", [b"{}\r"]),
        (b"{}", [b"{}"]),
    ],
)
def test_odd_files(data: bytes, lines: list[bytes]) -> None:
    for chunks in ([data], [data[i : i + 1] for i in range(len(data))], [b"", data, b""]):
        found = lines_of(cut(1000, [File("a", chunks), File("after", [b"{}\n"])]))
        assert found == [*((line, "a", i) for i, line in enumerate(lines, start=1)), (b"{}", "after", 1)]


def test_nothing_gives_no_block() -> None:
    assert list(cut(10, [])) == []
    assert list(cut(10, [File("a", []), File("b", [b"", BOM])])) == []


def test_a_line_longer_than_a_block_is_one_block() -> None:
    line = b"x" * 1000
    blocks = list(cut(10, [File("a", [b"1\n", line[:500], line[500:], b"\n2\n"])]))
    assert lines_of(blocks) == [(b"1", "a", 1), (line, "a", 2), (b"2", "a", 3)]
    assert max(block.size for block in blocks) <= 1003


def test_single_lines_go_between_files_with_their_own_numbers() -> None:
    """Strays of other files; a following line of the same file goes on with it."""
    sources: list[File | Single] = [
        File("a", [b"1\n2"]),
        Single(b"s7", "b", 7),
        Single(b"s8", "b", 8),
        Single(b"s8 again", "b", 8),
        Single(b"3", "a", 3),
        File("b", [b"4\n"]),
        Single(b"s9", "b", 9),
    ]
    expected = [("a", 1), ("a", 2), ("b", 7), ("b", 8), ("b", 8), ("a", 3), ("b", 1), ("b", 9)]
    for block_bytes in (1, 5, 1000):
        assert [origin for _, *origin in lines_of(cut(block_bytes, sources))] == [
            list(each) for each in expected
        ]
