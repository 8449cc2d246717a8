"""The partial file of a run: every measurement as a line at once, so that a run can be taken up again.

The first line says which card and software the rest belongs to. A line that a crash cut off is dropped. Before a batch
its points are written down as ``begun``: a point that a crashed process was timing is tried once more alone, and left
out after the second crash.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu_calibrate.device.base import DeviceFacts
from gpu_calibrate.plan.points import Point
from gpu_calibrate.timing.replays import Failure, Measurement
from sim.errors import InputError, OutputError, Problem

FORMAT = "gpu-calibrate-partial"
VERSION = 1
MAX_CRASHES = 2


def partial_path(out: Path) -> Path:
    """Where a run towards ``out`` keeps what it has."""
    return out.with_name(out.name + ".partial.jsonl")


def header(facts: DeviceFacts) -> dict[str, Any]:
    """What must be equal for a run to be resumed."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "device": facts.name,
        "gpu": facts.gpu.name,
        "num_gpus": facts.num_gpus,
        "software": dict(sorted(facts.software.items())),
    }


def point_record(point: Point) -> list[Any]:
    """A point as JSON."""
    return [point.operator, list(point.key), point.at, point.role, point.variant, point.skew]


def read_point(record: Sequence[Any]) -> Point:
    """The inverse of ``point_record``."""
    operator, key, at, role, variant, skew = record
    return Point(str(operator), tuple(key), int(at), str(role), str(variant), str(skew))


def measurement_record(measurement: Measurement) -> dict[str, Any]:
    """A measurement as JSON; an infinite interval (too few samples) is null."""
    record = asdict(measurement)
    record["point"] = point_record(measurement.point)
    record["interval"] = None if measurement.interval == float("inf") else measurement.interval
    record["throttle"] = list(measurement.throttle)
    return record


def read_measurement(record: dict[str, Any]) -> Measurement:
    """The inverse of ``measurement_record``."""
    values = dict(record)
    values["point"] = read_point(values["point"])
    values["interval"] = float("inf") if values["interval"] is None else values["interval"]
    values["throttle"] = tuple(values["throttle"])
    return Measurement(**values)


@dataclass(slots=True)
class Kept:
    """What a partial file holds."""

    measurements: dict[str, Measurement] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    crashes: Counter[str] = field(default_factory=Counter)
    """How often a process ended while timing this point."""
    extras: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    """Spent by the runs so far."""

    def add(self, record: dict[str, Any]) -> None:
        """One line."""
        kind = record["kind"]
        if kind == "begun":
            self.crashes.update(record["points"])
        elif kind == "measurement":
            measurement = read_measurement(record["value"])
            self.measurements[measurement.point.id] = measurement
            self.crashes.pop(measurement.point.id, None)
        elif kind == "failure":
            failure = Failure(read_point(record["value"]["point"]), str(record["value"]["reason"]))
            self.failures[failure.point.id] = failure
            self.crashes.pop(failure.point.id, None)
        elif kind == "stopped":
            for identity in record["points"]:
                self.crashes[identity] -= 1
        elif kind == "extra":
            self.extras[record["name"]] = record["value"]
        elif kind == "seconds":
            self.seconds += float(record["value"])


class Store:
    """Appends lines to the partial file. A context manager."""

    def __init__(self, path: Path, facts: DeviceFacts) -> None:
        """Opens or resumes ``path``.

        Raises:
            InputError: the file belongs to another card or other software, or is no partial file.
            OutputError: it cannot be written.
        """
        self.path = path
        self.kept = Kept()
        expected = header(facts)
        try:
            text = path.read_bytes().decode("utf-8", "replace") if path.exists() else ""
            lines = text.splitlines()
            if lines:
                self._resume(lines, expected)
            self._stream = path.open("a" if lines else "w", encoding="utf-8")
            if not text.endswith("\n"):
                self._stream.write("\n" if lines else "")  # or what comes next would be lost with the line cut off
        except OSError as error:
            raise OutputError(str(path), error) from error
        if not lines:
            self._write(expected)

    def _resume(self, lines: Sequence[str], expected: dict[str, Any]) -> None:
        try:
            found = json.loads(lines[0])
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or found.get("format") != FORMAT or found.get("version") != VERSION:
            raise InputError(Problem("not a partial calibration of this version; move it away", file=str(self.path)))
        different = [name for name in expected if found.get(name) != expected[name]]
        if different:
            was = ", ".join(f"{name} {found.get(name)!r} (now {expected[name]!r})" for name in different)
            remedy = "measure with --fresh, or into another file"
            raise InputError(Problem(f"begun with another {was}; {remedy}", file=str(self.path)))
        for line in lines[1:]:
            try:
                self.kept.add(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue  # cut off in the middle by whatever ended that run

    def _write(self, record: dict[str, Any]) -> None:
        try:
            self._stream.write(json.dumps(record) + "\n")
            self._stream.flush()
        except OSError as error:
            raise OutputError(str(self.path), error) from error

    def _put(self, record: dict[str, Any]) -> None:
        self._write(record)
        self.kept.add(record)

    def begin(self, points: Iterable[Point]) -> None:
        """These are about to be timed."""
        self._put({"kind": "begun", "points": [point.id for point in points]})

    def stopped(self, points: Iterable[Point]) -> None:
        """These were begun and given up on purpose: no crash."""
        self._put({"kind": "stopped", "points": [point.id for point in points]})

    def measured(self, measurement: Measurement) -> None:
        """A result."""
        self._put({"kind": "measurement", "value": measurement_record(measurement)})

    def failed(self, failure: Failure) -> None:
        """A point that cannot be timed here."""
        value = {"point": point_record(failure.point), "reason": failure.reason}
        self._put({"kind": "failure", "value": value})

    def extra(self, name: str, value: Any) -> None:
        """A result that is no point: host time, mixed steps."""
        self._put({"kind": "extra", "name": name, "value": value})

    def spent(self, seconds: float) -> None:
        """Time of this process."""
        self._put({"kind": "seconds", "value": round(seconds, 3)})

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
