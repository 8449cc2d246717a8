"""Predicted against measured: the requests of a measured run, simulated as they were sent."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.errors import InputError, OutputError
from sim.live.measured import Measured, bundled_share, figures, reasons
from sim.live.observation_file import Observation
from sim.results.metrics import METRICS, STATISTICS
from sim.results.staging import staging_folder
from sim.workload.table import NO_DEADLINE, NO_GROUP, NO_HINT, NO_LORA, NO_PARENT, ClassInfo, RequestTable

if TYPE_CHECKING:
    from sim.results.results import Results
    from sim.scenario.loader import LoadedScenario

COMPARED = (
    *("duration", "request_throughput", "output_throughput", "total_token_throughput"),
    *(
        f"{statistic}_{metric}_ms"
        for metric in METRICS
        for statistic in STATISTICS
        if statistic not in ("median", "std")
    ),
)
"""Keys of ``summary.json`` that are compared."""
MUCH_BUNDLED = 0.01
FILES = ("validation.json", "requests.csv")


def table_of(done: list[Observation]) -> RequestTable:
    """Completed requests as a workload: as sent, when sent, as long as they became."""
    classes: dict[ClassInfo, int] = {}
    class_index = [
        classes.setdefault(ClassInfo(each.class_name, each.tenant, each.tier), len(classes)) for each in done
    ]
    first_ns = min((each.sent_ns or 0 for each in done), default=0)
    contents: dict[int, int] = {}
    counts = [len(each.segments) for each in done]
    pairs = [pair for each in done for pair in each.segments]

    adapters = {name: number for number, name in enumerate(sorted({each.lora for each in done if each.lora}), 1)}

    def column(values: list[int]) -> Any:
        return np.array(values, dtype=np.int64)

    nothing = np.full(len(done), -1, dtype=np.int64)
    return RequestTable(
        arrival_ns=column([(each.sent_ns or 0) - first_ns for each in done]),
        input_tokens=column([each.input_tokens for each in done]),
        output_tokens=column([each.output_tokens for each in done]),
        max_tokens=column([max(each.max_tokens, each.output_tokens) for each in done]),
        priority=column([each.priority for each in done]),
        class_index=column(class_index),
        parent=np.full_like(nothing, NO_PARENT),
        deadline_ns=column([NO_DEADLINE if each.deadline_ns is None else each.deadline_ns for each in done]),
        expected_output_tokens=column(
            [NO_HINT if each.expected_output_tokens is None else each.expected_output_tokens for each in done]
        ),
        session=np.full_like(nothing, NO_GROUP),
        lora=column([adapters.get(each.lora or "", NO_LORA) for each in done]) if adapters else None,
        loras=tuple(adapters),
        segment_offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        segment_content_id=column([contents.setdefault(content, len(contents)) for content, _ in pairs]),
        segment_end_tokens=column([end for _, end in pairs]),
        classes=list(classes),
        request_ids=[each.request_id for each in done],
    )


@dataclass(slots=True)
class Validation:
    """A measured run beside its simulation."""

    scenario: str
    file: str
    measured: Measured
    measured_figures: dict[str, Any]
    results: Results
    notes: list[str]

    @property
    def rows(self) -> list[tuple[str, float | None, float | None, float | None]]:
        """(key, measured, predicted, error in per cent) of every figure that is compared."""
        summary = self.results.summary
        found = []
        for key in COMPARED:
            seen, told = self.measured_figures[key], summary[key]
            found.append((key, seen, told, error_percent(seen, told)))
        return found

    def document(self) -> dict[str, Any]:
        """``validation.json``."""
        headline = ("completed", "failed", "total_input_tokens", "total_output_tokens")
        return {
            "scenario": self.scenario,
            "measured_file": self.file,
            "source": self.measured.source,
            "counts": {
                "measured": {key: self.measured_figures[key] for key in headline},
                "predicted": {key: self.results.summary[key] for key in headline},
            },
            "left_out": dict(reasons(self.measured.observations)),
            "metrics": {
                key: {"measured": seen, "predicted": told, "error_percent": error}
                for key, seen, told, error in self.rows
            },
            "latency": self.results.summary["run"]["latency"],
            "notes": self.notes,
        }

    def to_json(self) -> str:
        """``validation.json`` as text."""
        return json.dumps(self.document(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    def write(self, folder: str) -> list[Path]:
        """Write ``FILES`` into ``folder``, made if missing; each is there as a whole or as it was.

        Raises OutputError.
        """
        target = Path(folder)
        written = [target / name for name in FILES]
        try:
            with staging_folder(target) as staging:
                (staging / FILES[0]).write_text(self.to_json(), encoding="utf-8", newline="\n")
                with (staging / FILES[1]).open("w", encoding="utf-8", newline="") as stream:
                    csv.writer(stream, lineterminator="\n").writerows(self.request_rows())
                for path in written:
                    (staging / path.name).replace(path)
        except OSError as error:
            raise OutputError(f"--out {folder}", error) from error
        return written

    def request_rows(self) -> list[list[Any]]:
        """``requests.csv``: every completed request, measured beside predicted, in ms."""
        columns = ("ttft_ms", "tpot_ms", "e2el_ms")
        head = ["request_id", "sent_s", "input_tokens", "output_tokens"]
        rows: list[list[Any]] = [[*head, *(f"{kind}_{name}" for name in columns for kind in ("measured", "predicted"))]]
        predicted = self.results.requests
        told = {name: predicted[name].tolist() for name in columns}
        for index, seen in enumerate(self.measured.completed):
            own = _own(seen)
            values = [value for name, mine in zip(columns, own, strict=True) for value in (mine, told[name][index])]
            rows.append(
                [seen.request_id, (seen.sent_ns or 0) / 1e9, seen.input_tokens, seen.output_tokens]
                + ["" if value is None or value != value else value for value in values]
            )
        return rows


def _own(seen: Observation) -> tuple[float, float | None, float]:
    sent, first, last = seen.sent_ns or 0, seen.token_ns[0], seen.token_ns[-1]
    tpot = (last - first) / (seen.output_tokens - 1) / 1e6 if seen.output_tokens > 1 else None
    return (first - sent) / 1e6, tpot, (last - sent) / 1e6


def error_percent(measured: float | None, predicted: float | None) -> float | None:
    """100 * (predicted - measured) / measured; None where one is missing or the measured one is 0 and the other not."""
    if measured is None or predicted is None:
        return None
    if predicted == measured:
        return 0.0
    return 100 * (predicted - measured) / measured if measured else None


def validate(
    loaded: LoadedScenario,
    measured: Measured,
    file: str,
    progress: Callable[[int, int, int], None] | None = None,
) -> Validation:
    """Simulate the completed requests of ``measured`` with everything in ``loaded`` but its workload.

    Raises InputError where nothing completed, and whatever ``sim.run.run`` raises.
    """
    from sim.run import run

    done = measured.completed
    if not done:
        why = reasons(measured.observations).most_common(1)
        because = f"; {why[0][1]:,} of {len(measured.observations):,}: {why[0][0]}" if why else ""
        raise InputError(f"{file}: no request completed, so there is nothing to compare{because}")
    results = run(loaded, workload=table_of(done), progress=progress)
    notes = [*measured.notes, *_notes(measured, results)]
    return Validation(loaded.scenario.name, file, measured, figures(measured), results, notes)


def _notes(measured: Measured, results: Results) -> list[str]:
    notes = []
    left_out = len(measured.observations) - len(measured.completed)
    if left_out:
        notes.append(
            f"{left_out:,} of {len(measured.observations):,} requests did not complete and are left out of both sides"
        )
    share = bundled_share(measured)
    if share > MUCH_BUNDLED:
        notes.append(
            f"{share:.0%} of the tokens came together with the one before, which the server or a late client makes of "
            "a stream: measured ITL is between events; TPOT is the figure to compare"
        )
    return [*notes, *results.summary["run"]["notes"]]
