"""What ``simrun observe`` saw, a line of JSON per request, written as requests end.

The first line says what was run, each further line one request (``Observation``), the last one that the run reached
its end. Instants are seconds since the run's start with nine decimals, so that they read back to the same nanosecond.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from sim.errors import InputError, OutputError, Problem

KIND = "simrun-observe"
FORMAT = 1
NS_PER_S = 1_000_000_000
LARGEST_COUNT = 1 << 40
"""What no number of tokens, nor anything else that is counted here, comes near to."""

Ending = Literal["completed", "failed", "cancelled"]
ENDINGS: tuple[Ending, ...] = ("completed", "failed", "cancelled")


@dataclass(slots=True)
class Observation:
    """One request as a client saw it. Instants are nanoseconds since the start of the run."""

    row: int
    """Position in the workload."""
    request_id: str
    due_ns: int
    """When it should have been sent."""
    input_tokens: int
    """As the server counted them (``usage``); what was meant to be sent where it never said."""
    max_tokens: int
    priority: int = 0
    class_name: str = "default"
    tenant: str = "default"
    tier: str = "default"
    deadline_ns: int | None = None
    """Time allowed from arrival to end."""
    expected_output_tokens: int | None = None
    segments: list[tuple[int, int]] = field(default_factory=list)
    """Shared beginnings of the prompt, as (content id, end in tokens); see ``RequestTable``."""
    sent_ns: int | None = None
    """None where it was never sent."""
    token_ns: list[int] = field(default_factory=list)
    """When each event that carried text came. A server may put several tokens into one."""
    end_ns: int | None = None
    """When its stream had ended, or it had failed."""
    output_tokens: int = 0
    """As the server counted them (``usage``); 0 where it never said."""
    status: Ending = "failed"
    reason: str | None = None
    """Why it did not complete."""
    http_status: int | None = None
    finish_reason: str | None = None
    lora: str | None = None
    """The LoRA adapter that it asked for; None = the model itself."""

    def to_json(self) -> dict[str, Any]:
        """The line of this request."""
        return {
            "row": self.row,
            "request_id": self.request_id,
            "status": self.status,
            "reason": self.reason,
            "http_status": self.http_status,
            "finish_reason": self.finish_reason,
            "due_s": _seconds(self.due_ns),
            "sent_s": _seconds(self.sent_ns),
            "first_token_s": _seconds(self.token_ns[0] if self.token_ns else None),
            "last_token_s": _seconds(self.token_ns[-1] if self.token_ns else None),
            "end_s": _seconds(self.end_ns),
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "max_tokens": self.max_tokens,
            "priority": self.priority,
            "class": self.class_name,
            "tenant": self.tenant,
            "tier": self.tier,
            "lora": self.lora,
            "deadline_s": _seconds(self.deadline_ns),
            "expected_output_tokens": self.expected_output_tokens,
            "segments": self.segments,
            "token_s": [_seconds(each) for each in self.token_ns],
        }

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Observation:
        """What ``to_json`` wrote. Raises ValueError naming the key that is missing or of another kind."""
        status = line.get("status")
        if status not in ENDINGS:
            raise ValueError(f"status must be one of {', '.join(ENDINGS)}, found {status!r}")
        tokens, segments = line.get("token_s"), line.get("segments", [])
        if not isinstance(tokens, list):
            raise ValueError(f"token_s must be a list of seconds, found {tokens!r}")
        found = cls(
            row=_whole(line, "row"),
            request_id=str(line.get("request_id", line.get("row"))),
            due_ns=_nanoseconds("due_s", line.get("due_s")) or 0,
            input_tokens=_whole(line, "input_tokens"),
            max_tokens=_whole(line, "max_tokens"),
            priority=_whole(line, "priority", 0),
            class_name=str(line.get("class", "default")),
            tenant=str(line.get("tenant", "default")),
            tier=str(line.get("tier", "default")),
            lora=None if line.get("lora") is None else str(line["lora"]),
            deadline_ns=_nanoseconds("deadline_s", line.get("deadline_s")),
            expected_output_tokens=None
            if line.get("expected_output_tokens") is None
            else _whole(line, "expected_output_tokens"),
            segments=_segments(segments),
            sent_ns=_nanoseconds("sent_s", line.get("sent_s")),
            token_ns=[_nanoseconds("token_s", each) or 0 for each in tokens],
            end_ns=_nanoseconds("end_s", line.get("end_s")),
            output_tokens=_whole(line, "output_tokens"),
            status=status,
            reason=line.get("reason"),
            http_status=line.get("http_status"),
            finish_reason=line.get("finish_reason"),
        )
        found.check()
        return found

    def check(self) -> None:
        """Raise ValueError where a completed request has no times or counts, or times run backwards."""
        if self.status != "completed":
            return
        if self.sent_ns is None or not self.token_ns or self.output_tokens < 1 or self.input_tokens < 1:
            raise ValueError("a completed request needs sent_s, token_s, input_tokens and output_tokens")
        times = [self.sent_ns, *self.token_ns]
        if any(later < earlier for earlier, later in pairwise(times)):
            raise ValueError("its times run backwards")


def _seconds(ns: int | None) -> float | None:
    return None if ns is None else ns / NS_PER_S


def _nanoseconds(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise ValueError(f"{name} must be seconds, found {value!r}")
    return round(value * NS_PER_S)


def _whole(line: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = line.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= LARGEST_COUNT:
        raise ValueError(f"{name} must be a whole number, found {value!r}")
    return value


def _segments(value: Any) -> list[tuple[int, int]]:
    if isinstance(value, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(type(each) is int and 0 <= each < LARGEST_COUNT for each in pair)
        for pair in value
    ):
        return [(pair[0], pair[1]) for pair in value]
    raise ValueError("segments must be a list of pairs of whole numbers")


def overwrite_problems(name: str, force: bool) -> list[Problem]:
    """Why a record cannot be written to ``name``, as far as it shows beforehand."""
    path = Path(name)
    if not name or path.is_dir():
        return [Problem(f"--out {name}: give the name of a file")]
    if not path.parent.is_dir():
        return [Problem(f"--out {name}: there is no folder {path.parent}")]
    if path.is_file() and not force:
        return [Problem(f"--out {name}: exists; name another file, or give --force to overwrite what it holds")]
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return [Problem(f"--out {name}: no permission to write it")]
    return []


class RecordFile:
    """A record that is being written. Every line is on its way to the disk before the next is begun."""

    def __init__(self, name: str, force: bool = False) -> None:
        """Open ``name``. Raises InputError where it exists and is not to be overwritten."""
        self.name = name
        self.counts: dict[str, int] = dict.fromkeys(ENDINGS, 0)
        if problems := overwrite_problems(name, force):
            raise InputError(problems)
        try:
            self._stream = open(name, "w", encoding="utf-8", newline="\n")  # noqa: SIM115
        except OSError as error:
            raise OutputError(f"--out {name}", error) from error

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stream.close()
        except OSError as problem:
            if kind is None:
                raise OutputError(f"--out {self.name}", problem) from problem

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line. Raises OutputError where the file takes no more."""
        try:
            self._stream.write(json.dumps(line, separators=(",", ":")) + "\n")
            self._stream.flush()
        except OSError as error:
            raise OutputError(f"--out {self.name}", error, "what was recorded before is in it") from error

    def begin(self, about: Mapping[str, Any]) -> None:
        """The first line."""
        self.write({"record": KIND, "format": FORMAT, **about})

    def add(self, observation: Observation) -> None:
        """A request that has ended."""
        self.counts[observation.status] += 1
        self.write(observation.to_json())

    def end(self, about: Mapping[str, Any]) -> None:
        """The last line: the run was seen to its end."""
        self.write({"end": True, "counts": self.counts, **about})


def read_record(path: Path, lines: Iterator[str]) -> tuple[dict[str, Any], list[Observation], list[str]]:
    """(first line, requests, notes) of a record whose lines are ``lines``.

    A last line that was cut off by a kill is a note, anything else wrong an InputError with its line.
    """
    header: dict[str, Any] = {}
    found: list[Observation] = []
    notes: list[str] = []
    problems: list[Problem] = []
    ended = False
    lines_of: dict[int, int] = {}
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            if not isinstance(line, dict):
                raise ValueError("expected an object")
            if number == 1:
                header = line
            elif "end" in line:
                ended = True
            else:
                seen = Observation.from_json(line)
                if seen.row in lines_of:
                    raise ValueError(f"row {seen.row} is in line {lines_of[seen.row]} already")
                lines_of[seen.row] = number
                found.append(seen)
        except (ValueError, RecursionError) as error:
            if not text.endswith("\n"):
                notes.append(f"{path.name}: its last line was cut off; that request is left out")
                break
            message = f"not JSON: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
            problems.append(Problem(message, str(path), number))
            if len(problems) == 20:
                break
    if header.get("format") != FORMAT:
        problems.insert(
            0, Problem(f"a record of format {header.get('format')!r}; this version reads {FORMAT}", str(path), 1)
        )
    if problems:
        raise InputError(problems)
    if not ended:
        planned = header.get("requests")
        of = f" of {planned:,}" if isinstance(planned, int) else ""
        notes.append(f"{path.name}: the run was broken off after {len(found):,}{of} requests")
    return header, found, notes
