"""Trace files as streams: opening (plain or gzip), splitting into rows, collecting what is wrong."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from sim.errors import InputError, Problem
from sim.workload.trace_fields import CellError, Field

MAX_PROBLEMS = 20
"""Problems listed of one file; the rest are counted."""

MOST_UNREAD = 12

CHUNK_ROWS = 4096


class TraceProblems:
    """Problems of one file, the first MAX_PROBLEMS in words."""

    def __init__(self, path: Path, trace_format: str = "generic") -> None:
        self.file = str(path)
        self.trace_format = trace_format
        """What the file is taken for, for messages."""
        self.listed: list[Problem] = []
        self.more = 0
        self.unread: dict[str, str] = {}
        """Columns and keys that nothing reads, each with the name that was perhaps meant."""
        self._repeated: dict[str, tuple[int, int]] = {}
        """Of messages that were added as one for many lines: their place in the list, and how many more lines."""

    def add(self, message: str, line: int | None = None, column: int | None = None) -> None:
        """One more problem."""
        if len(self.listed) < MAX_PROBLEMS:
            self.listed.append(Problem(message, self.file, line, column))
        else:
            self.more += 1

    def add_once(self, message: str, line: int) -> None:
        """One more problem, unless an earlier line had the same: then that one says so."""
        if message in self._repeated:
            place, more = self._repeated[message]
            self._repeated[message] = place, more + 1
        elif len(self.listed) < MAX_PROBLEMS:
            self._repeated[message] = len(self.listed), 0
            self.add(message, line)
        else:
            self.add(message, line)

    def raise_if_any(self) -> None:
        """Raise InputError with all of them."""
        for message, (place, more) in self._repeated.items():
            if more:
                self.listed[place] = replace(self.listed[place], message=f"{message} ({more:,} more lines likewise)")
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


def unread_note(problems: TraceProblems, file_name: str) -> list[str]:
    """Name the columns and keys of a file that nothing reads."""
    if not problems.unread:
        return []
    named = [_short(name) + (f" (meant as {meant}?)" if meant else "") for name, meant in problems.unread.items()]
    more = f" and {len(named) - MOST_UNREAD} more" if len(named) > MOST_UNREAD else ""
    return [f"{file_name}: not read: {', '.join(named[:MOST_UNREAD])}{more}"]


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name that was perhaps meant."""
    by_lower = {one.lower(): one for one in known}
    near = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.75)
    return by_lower[near[0]] if near else None


def _short(name: str) -> str:
    return name if len(name) <= 40 else name[:37] + "..."


def _leave_unread(name: str, known: Sequence[str], given: Sequence[str], problems: TraceProblems) -> None:
    """Keep the name of a column that nothing reads, with the nearest known one that the file lacks."""
    if name in problems.unread:
        return
    problems.unread[name] = nearest_name(name, (one for one in known if one not in given)) or ""


def _missing(fields: Sequence[Field], given: Sequence[str]) -> list[Field]:
    """Required fields that none of the ``given`` names is of."""
    return [field for field in fields if field.required and not any(name in given for name in field.names)]


def missing_message(fields: Sequence[Field], given: Sequence[str], problems: TraceProblems, what: str) -> str:
    """Say which columns (or keys) a file lacks, what it has instead, and what helps."""
    named = ", ".join(repr(field.name) for field in fields)
    plural = "s" if len(fields) > 1 else ""
    if text := [name for name in ("messages", "text_input", "prompt", "payload") if name in given]:
        return f"missing {what}{plural} {named}: `{text[0]}` holds text, whose tokens have to be counted first"
    return (
        f"missing {what}{plural} {named} of format {problems.trace_format}; found {', '.join(given)[:200]}. Give the "
        "file's own names under workload.trace.columns, or another workload.trace.format"
    )


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
            _take_rows(numbered, order, header, problems)
    except csv.Error as error:
        problems.add(f"not CSV: {error}", reader.line_num)


def _match_header(header: list[str], fields: Sequence[Field], problems: TraceProblems) -> list[Field | None]:
    """The field of each column; None where nothing reads it."""
    by_name = {name: field for field in reversed(fields) for name in field.names}
    taken: list[Field] = []
    for position, name in enumerate(header):
        if name in header[:position]:
            problems.add(f"column {name!r} is given twice", 1)
        elif name not in by_name:
            _leave_unread(name, list(by_name), header, problems)
        elif by_name[name] in taken:
            problems.add(f"column {name!r} is the same as {' or '.join(by_name[name].names)}; keep one of them", 1)
        else:
            taken.append(by_name[name])
    if missing := _missing(fields, header):
        problems.add(missing_message(missing, header, problems, "column"), 1)
    return [by_name.get(name) for name in header]


def _take_rows(
    numbered: list[tuple[int, list[str]]], order: list[Field | None], header: list[str], problems: TraceProblems
) -> None:
    """One chunk: as a whole where all is well, else cell by cell."""
    if not numbered:
        return
    width = len(header)
    if all(len(row) == width for _, row in numbered):
        columns = list(zip(*(row for _, row in numbered), strict=True))
        read = [(field, cells) for field, cells in zip(order, columns, strict=True) if field is not None]
        if _take_columns([field for field, _ in read], [cells for _, cells in read]):
            return
    for line, row in numbered:
        if len(row) != width:
            problems.add(f"expected {width} values ({','.join(header)[:120]}), found {len(row)}", line)
            continue
        for field, cell in zip(order, row, strict=True):
            if field is not None:
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


def read_jsonl(
    stream: TextIO, fields: Sequence[Field], problems: TraceProblems, limit: int | None, unfold: str | None = None
) -> None:
    """Fill ``fields`` from one JSON object per line; the first ``limit`` of them. ``unfold``: a key whose object's keys
    count as the row's own."""
    chunk: list[tuple[int, dict[str, Any]]] = []
    for line, row in islice(_objects(stream, fields, problems), limit):
        if row is None:
            continue
        inner = row.get(unfold) if unfold is not None else None
        if isinstance(inner, dict):
            row = {key: row[key] for key in row if key != unfold} | inner
        chunk.append((line, row))
        if len(chunk) == CHUNK_ROWS:
            _take_objects(chunk, fields, problems)
            chunk.clear()
    _take_objects(chunk, fields, problems)


def _objects(
    stream: TextIO, fields: Sequence[Field], problems: TraceProblems
) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(line, object) of each line that is not blank; None in place of what is no object, which is a problem."""
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    for line, text in enumerate(stream, start=1):
        if not text.strip():
            continue
        row: Any = None
        if text.lstrip()[0] not in "{[":
            said = f"format {problems.trace_format} is a JSON object per line, and this is none"
            problems.add_once(f"{said}; give another workload.trace.format", line)
            yield line, None
            continue
        try:
            row = decoder.decode(text.rstrip())
        except json.JSONDecodeError as error:
            problems.add(f"not JSON: {error.msg}; expected one object per line", line, error.colno)
        except (ValueError, RecursionError) as error:
            problems.add(f"not a JSON object of numbers and text: {error}", line)
        else:
            if not isinstance(row, dict):
                keys = ", ".join(field.name for field in fields if field.required)
                problems.add(f"expected an object with the keys {keys}, found {text.strip()[:40]!r}", line)
                row = None
        yield line, row


def _take_objects(chunk: list[tuple[int, dict[str, Any]]], fields: Sequence[Field], problems: TraceProblems) -> None:
    """One chunk of JSON objects."""
    known = {name for field in fields for name in field.names}
    for _, row in chunk:
        if not row.keys() <= known:
            for name in row:
                if name not in known:
                    _leave_unread(name, sorted(known), list(row), problems)
    if not chunk or _take_columns(fields, [[_cell(row, field) for _, row in chunk] for field in fields]):
        return
    for line, row in chunk:
        if missing := _missing(fields, list(row)):
            problems.add_once(missing_message(missing, list(row), problems, "key"), line)
        for field in fields:
            if field not in missing:
                take_cell(field, _cell(row, field), problems, line)


def _cell(row: dict[str, Any], field: Field) -> Any:
    """What a row has for a field, by any of its names."""
    if not field.aliases:
        return row.get(field.name)
    return next((row[name] for name in field.names if row.get(name) is not None), None)


def looks_like_json(stream: TextIO) -> bool:
    """Whether the first character that is not blank opens an object; the stream starts over."""
    head = ""
    while not head.strip() and (piece := stream.read(256)):
        head += piece
    stream.seek(0)
    return head.lstrip().startswith("{")
