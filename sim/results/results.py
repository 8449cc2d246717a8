"""The library's face of a run: summary, data frames, files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.errors import InputError, OutputError
from sim.results.columns import Named, request_columns, step_columns
from sim.results.context import RunContext
from sim.results.record import RunRecord
from sim.results.staging import staging_folder
from sim.results.summary import build_summary
from sim.results.verdicts import what_is_missed

if TYPE_CHECKING:
    import pandas as pd

RESOLVED = "scenario.resolved.yaml"
FILES = (
    *("summary.json", "requests.parquet", "steps.parquet", RESOLVED, "report.html", "trace.json.gz", "seeds.json"),
)
"""All that a run, or several seeds of one, can write."""


class Results:
    """What a run found. Everything is computed when first asked for."""

    def __init__(self, record: RunRecord, context: RunContext | None = None) -> None:
        self.record = record
        self.context = context or RunContext()

    def __repr__(self) -> str:
        return f"<Results of {self.context.name!r}: {len(self.record.requests['row'])} requests>"

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of ``summary.json``."""
        return build_summary(self.record, self.context)

    @property
    def summary_json(self) -> str:
        """``summary.json`` as text."""
        return json.dumps(self.summary, indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    @property
    def slo_met(self) -> bool:
        """Whether every SLO of the scenario is met; true without any."""
        slo = self.summary["slo"]
        return slo is None or bool(slo["met"])

    @property
    def misses(self) -> list[str]:
        """Why the run does not pass ``--check-slo``, a line each: limits that are missed, requests that were not served
        (none may be where there is no SLO), and overload."""
        return what_is_missed(self.summary)

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row per request: its times, tokens and how it ended."""
        import pandas as pd

        columns: dict[str, Any] = {}
        for name, column in request_columns(self.record).items():
            columns[name] = column.objects() if isinstance(column, Named) else column
        columns["request_id"] = [str(each) for each in columns["request_id"]]
        frame = pd.DataFrame(columns)
        frame["replica"] = frame["replica"].where(frame["replica"] >= 0).astype("Int64")
        return frame

    @cached_property
    def steps(self) -> pd.DataFrame:
        """One row per run of identical steps."""
        import pandas as pd

        return pd.DataFrame(step_columns(self.record))

    def write(self, out_dir: str | os.PathLike[str], more: Mapping[str, str] | None = None) -> list[Path]:
        """Write the files that the scenario's ``outputs`` ask for into ``out_dir``, created if missing.

        Files appear complete or not at all: they are written beside their place and moved there at the end. Those
        that an earlier run wrote there and this one does not are removed: what is there is of one run.

        Args:
            out_dir: the folder.
            more: texts of further files, by name (one of ``FILES``).

        Returns:
            The files written, in the order of the documentation.

        Raises:
            InputError: ``out_dir`` is a file or no folder to write to.
            OutputError: it stopped taking data, as a full disk does.
        """
        target = Path(out_dir)
        with ExitStack() as stack:
            try:
                staging = stack.enter_context(staging_folder(target))
            except OSError as error:
                message = f"--out {target}: {os.strerror(error.errno or 0)}; name a folder to write to"
                raise InputError(message) from error
            try:
                names = self._write_files(staging)
                for name, content in (more or {}).items():
                    (staging / name).write_text(content, encoding="utf-8", newline="\n")
                    names.append(name)
                # Of an earlier run, not a file of such a name that is kept here for another purpose.
                stale = [name for name in FILES if name not in names] if (target / RESOLVED).exists() else []
                for name in names:
                    os.replace(staging / name, target / name)
                for name in stale:
                    (target / name).unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(target, error, "the outputs are incomplete") from error
        return [target / name for name in names]

    def _write_files(self, folder: Path) -> list[str]:
        from sim.results.parquet import write_requests, write_steps

        context = self.context

        def text(content: Callable[[], str]) -> Callable[[Path], object]:
            return lambda path: path.write_text(content(), encoding="utf-8", newline="\n")

        def report() -> str:
            from sim.results.report import render_report

            return render_report(self.record, self.summary, context)

        def trace(path: Path) -> None:
            from sim.results.timeline import write_trace

            write_trace(path, self.record)

        writers: list[tuple[str, bool, Callable[[Path], object]]] = [
            ("summary.json", True, text(lambda: self.summary_json)),
            ("requests.parquet", context.requests, lambda path: write_requests(path, self.record)),
            ("steps.parquet", context.steps, lambda path: write_steps(path, self.record)),
            (RESOLVED, True, text(lambda: context.scenario_yaml)),
            ("report.html", context.report, text(report)),
            ("trace.json.gz", context.trace, trace),
        ]
        chosen = [(name, write) for name, wanted, write in writers if wanted]
        for name, write in chosen:
            write(folder / name)
        return [name for name, _ in chosen]
