"""The decisions file: one JSON line per scheduler step, in order of (instant, replica, step)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TextIO

from sim.engine.request import Request


class DecisionLog:
    """Writes lines as they come; with ``in_order=False``, keeps them and writes them sorted on ``close``.

    Fast stepping learns of a step after others have happened elsewhere, so its lines come out of order.
    """

    def __init__(self, stream: TextIO, *, in_order: bool) -> None:
        self._stream = stream
        self._in_order = in_order
        self._lines: list[tuple[int, int, int, str]] = []

    def step(
        self,
        time_ns: int,
        replica: int,
        step: int,
        scheduled: Mapping[str, int],
        preempted: Iterable[Request],
        finished: Iterable[Request],
        num_free_blocks: int,
    ) -> None:
        """Step number ``step`` of a replica, formed at ``time_ns``; the steps of one replica come in order."""
        line = {
            "step": step,
            "time_s": time_ns / 1e9,
            "replica": replica,
            "scheduled": scheduled,
            "preempted": [request.request_id for request in preempted],
            "finished": [request.request_id for request in finished],
            "free_blocks": num_free_blocks,
        }
        self._write(time_ns, replica, json.dumps(line))

    def _write(self, time_ns: int, replica: int, line: str) -> None:
        if self._in_order:
            self._stream.write(line + "\n")
        else:
            self._lines.append((time_ns, replica, len(self._lines), line))

    def forget(self) -> None:
        """Nothing of what was kept is written: the run starts anew."""
        self._lines.clear()

    def close(self) -> None:
        """Write what was kept."""
        self._lines.sort()
        self._stream.writelines(line + "\n" for *_, line in self._lines)
        self._lines.clear()
