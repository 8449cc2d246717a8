"""Trace files as streams: opening (plain or gzip), splitting into rows, collecting what is wrong."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from sim.errors import InputError, Problem
from sim.workload.trace_fields import CellError, Field

MAX_PROBLEMS = 20
"""Problems listed of one file; the rest are counted."""

CHUNK_ROWS = 4096


class TraceProblems:
    """Problems of one file, the first MAX_PROBLEMS in words."""

    def __init__(self, path: Path) -> None:
        self.file = str(path)
        self.listed: list[Problem] = []
        self.more = 0

    def add(self, message: str, line: int | None = None, column: int | None = None) -> None:
        """One more problem."""
        if len(self.listed) < MAX_PROBLEMS:
            self.listed.append(Problem(message, self.file, line, column))
        else:
            self.more += 1

    def raise_if_any(self) -> None:
        """Raise InputError with all of them."""
        if self.more:
            self.listed.append(Problem(f"... and {self.more} more", self.file))
            self.more = 0
        if self.listed:
            raise InputError(list(self.listed))


def resolve(path: str, base_dir: Path) -> Path:
    """The trace file: relative to the scenario's folder, else to the working directory."""
    given = Path(path).expanduser()
    for candidate in (base_dir / given, given):
        if candidate.is_file():
            return candidate
        if candidate.exists():
            raise InputError(f"workload.trace.path: {candidate} is not a file")
    tried = str(given) if given.is_absolute() else f"{base_dir / given} and {Path.cwd() / given}"
    raise InputError(f"workload.trace.path: no such file; looked for {tried}")


@contextmanager
def open_trace(path: Path, problems: TraceProblems) -> Iterator[TextIO]:
    """The file as text, decompressed if its first bytes are gzip's; what goes wrong while reading is a problem."""
    try:
        with open(path, "rb") as raw:
            magic = raw.read(2)
            raw.seek(0)
            binary = gzip.GzipFile(fileobj=raw) if magic == b"\x1f\x8b" else raw
            if b"\0" in binary.peek(4096)[:4096]:
                raise UnicodeError
            with io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text:
                yield text
    except EOFError:
        problems.add("the gzip file is cut off: the download or copy did not finish; fetch it again")
    except (gzip.BadGzipFile, zlib.error) as error:
        problems.add(f"the gzip file is damaged ({error}); fetch it again")
    except UnicodeError:
        problems.add("this is not a text file (expected CSV or JSON in UTF-8, plain or gzip)")
    except OSError as error:
        problems.add(f"cannot be read: {error.strerror or error}")
    problems.raise_if_any()


def unknown_name(name: str, known: Sequence[str], what: str) -> str:
    """The message for a column or key that nothing reads."""
    by_lower = {one.lower(): one for one in known}
    near = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.75)
    hint = f"; did you mean {by_lower[near[0]]}?" if near else ""
    shown = name if len(name) <= 40 else name[:37] + "..."
    return f"unknown {what} {shown!r}{hint} (known: {', '.join(known)})"


def read_csv(stream: TextIO, fields: Sequence[Field], problems: TraceProblems, limit: int | None) -> None:
    """Fill ``fields`` from a CSV file with a header; the first ``limit`` rows."""
    reader = csv.reader(stream, skipinitialspace=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not header:
            problems.add("expected a header line and one line per request, found an empty first line", 1)
            return
        order = _match_header(header, fields, problems)
        taken = 0
        while not problems.listed or taken:
            first_line = reader.line_num + 1
            rows = list(islice(reader, CHUNK_ROWS))
            if not rows or taken == limit:
                return
            # A quoted line break inside a cell would put the numbers off; no trace column holds any.
            numbered = [(line, row) for line, row in enumerate(rows, first_line) if row and any(map(str.strip, row))]
            numbered = numbered if limit is None else numbered[: limit - taken]
            taken += len(numbered)
            _take_rows(numbered, order, len(header), problems)
    except csv.Error as error:
        problems.add(f"not CSV: {error}", reader.line_num)


def _match_header(header: list[str], fields: Sequence[Field], problems: TraceProblems) -> list[Field]:
    """The field of each column."""
    by_name = {field.name: field for field in fields}
    for position, name in enumerate(header):
        if name not in by_name:
            problems.add(unknown_name(name, list(by_name), "column"), 1)
        elif name in header[:position]:
            problems.add(f"column {name!r} is given twice", 1)
    for field in fields:
        if field.required and field.name not in header:
            problems.add(f"missing column {field.name!r}; found {', '.join(header)[:200]}", 1)
    return [by_name[name] for name in header if name in by_name]


def _take_rows(numbered: list[tuple[int, list[str]]], order: list[Field], width: int, problems: TraceProblems) -> None:
    """One chunk: as a whole where all is well, else cell by cell."""
    if not numbered:
        return
    if all(len(row) == width for _, row in numbered):
        columns = list(zip(*(row for _, row in numbered), strict=True))
        if _take_columns(order, columns):
            return
    for line, row in numbered:
        if len(row) != width:
            names = ",".join(field.name for field in order)
            problems.add(f"expected {width} values ({names}), found {len(row)}", line)
            continue
        for field, cell in zip(order, row, strict=True):
            take_cell(field, cell, problems, line)


def _take_columns(fields: Sequence[Field], columns: Sequence[Sequence[Any]]) -> bool:
    """Take a chunk column by column; False, and nothing taken, if any cell is not as expected."""
    sizes = [field.size() for field in fields]
    try:
        for field, cells in zip(fields, columns, strict=True):
            field.extend(cells)
    except (ValueError, TypeError, OverflowError):
        for field, size in zip(fields, sizes, strict=True):
            field.truncate(size)
        return False
    return True


def take_cell(field: Field, cell: Any, problems: TraceProblems, line: int | None, name: str | None = None) -> None:
    """Take one cell; if it is not what the field expects, that is a problem."""
    try:
        field.append(cell)
    except CellError as error:
        problems.add(f"{name or field.name}: {error}", line)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that JSON allows")


def read_jsonl(stream: TextIO, fields: Sequence[Field], problems: TraceProblems, limit: int | None) -> None:
    """Fill ``fields`` from one JSON object per line; the first ``limit`` of them."""
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    unknown: set[str] = set()
    chunk: list[tuple[int, dict[str, Any]]] = []
    taken = 0
    for line, text in enumerate(stream, start=1):
        if taken == limit:
            break
        if not text.strip():
            continue
        taken += 1
        try:
            row = decoder.decode(text.rstrip())
        except json.JSONDecodeError as error:
            problems.add(f"not JSON: {error.msg}; expected one object per line", line, error.colno)
            continue
        except (ValueError, RecursionError) as error:
            problems.add(f"not a JSON object of numbers and text: {error}", line)
            continue
        if not isinstance(row, dict):
            keys = ", ".join(field.name for field in fields if field.required)
            problems.add(f"expected an object with the keys {keys}, found {text.strip()[:40]!r}", line)
            continue
        chunk.append((line, row))
        if len(chunk) == CHUNK_ROWS:
            _take_objects(chunk, fields, problems, unknown)
            chunk.clear()
    _take_objects(chunk, fields, problems, unknown)


def _take_objects(
    chunk: list[tuple[int, dict[str, Any]]], fields: Sequence[Field], problems: TraceProblems, unknown: set[str]
) -> None:
    """One chunk of JSON objects; ``unknown`` are the strange keys already reported."""
    known = [field.name for field in fields]
    for line, row in chunk:
        for name in row.keys() - set(known) - unknown:
            unknown.add(name)
            problems.add(unknown_name(name, known, "key"), line)
    if not chunk or _take_columns(fields, [[row.get(name) for _, row in chunk] for name in known]):
        return
    for line, row in chunk:
        for field in fields:
            if field.required and field.name not in row:
                problems.add(f"missing key {field.name!r}", line)
            else:
                take_cell(field, row.get(field.name), problems, line)


def looks_like_json(stream: TextIO) -> bool:
    """Whether the first character that is not blank opens an object; the stream starts over."""
    head = ""
    while not head.strip() and (piece := stream.read(256)):
        head += piece
    stream.seek(0)
    return head.lstrip().startswith("{")
