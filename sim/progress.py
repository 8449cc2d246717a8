"""A progress bar on standard error: on a terminal only, and only once a run has taken a while."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

QUIET_S = 1.0
"""A run shorter than this shows nothing."""


class ProgressBar:
    """Call it with (ended, submitted, now_ns); it draws itself when that is worth while."""

    def __init__(
        self, file: TextIO | None = None, quiet_s: float = QUIET_S, words: tuple[str, str] = ("simulating", "simulated")
    ) -> None:
        self._words = words
        """What is being done, and what has been done for the time shown."""
        self._file = file or sys.stderr
        self._quiet_s = quiet_s
        self._started_s = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    @property
    def wanted(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._file.isatty()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, ended: int, submitted: int, now_ns: int) -> None:
        """``ended`` of ``submitted`` requests have ended at simulated ``now_ns``."""
        if not self.wanted or time.monotonic() - self._started_s < self._quiet_s:
            return
        if self._bar is None:
            self._open()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=ended, total=submitted, simulated=f"{now_ns / 1e9:,.0f} s")

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn(self._words[0]),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(f"requests, {{task.fields[simulated]}} {self._words[1]}"),
            TimeRemainingColumn(compact=True),
            console=Console(file=self._file),
            transient=True,
        )
        self._task = self._bar.add_task("run", total=None, simulated="0 s")
        self._bar.start()


class RunsBar:
    """Of several runs: call it with (finished, of how many). Shown as ``ProgressBar`` is."""

    def __init__(self, file: TextIO | None = None, quiet_s: float = QUIET_S) -> None:
        self._file = file or sys.stderr
        self._quiet_s = quiet_s
        self._started_s = time.monotonic()
        self._bar: Progress | None = None

    @property
    def wanted(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._file.isatty()

    def __enter__(self) -> RunsBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, finished: int, total: int | None) -> None:
        """``finished`` of ``total`` runs have ended; None = how many there will be is not known."""
        if not self.wanted or time.monotonic() - self._started_s < self._quiet_s:
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("simulating"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("runs,"))
            self._bar = Progress(*columns, TimeElapsedColumn(), console=Console(file=self._file), transient=True)
            self._bar.add_task("runs", total=total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=finished, total=total)
