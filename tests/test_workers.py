"""Runs in processes of their own: what comes back, and what is said when nothing does."""

from __future__ import annotations

import os
import signal
import sys
import threading
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from sim.errors import InputError, SimulationError
from sim.run import load
from sim.workers import Workers, _answer

SCENARIO: dict[str, Any] = {
    "name": "worker",
    "workload": {
        "requests": 5,
        "arrival": {"process": "constant", "rate": 5.0},
        "input_tokens": {"dist": "fixed", "value": 50},
        "output_tokens": {"dist": "fixed", "value": 5},
    },
    "engine": {"model": "llama-2-7b", "gpu": "a100-80gb-sxm", "policy": "own_ending:Ending"},
}
POLICY = """\
import os, signal
from policies.fcfs import Fcfs

class Ending(Fcfs):
    stock_mode = None

    def rank(self, request, now_ns):
        {what}
        return super().rank(request, now_ns)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def write(what: str) -> Any:
        (tmp_path / "own_ending.py").write_text(POLICY.format(what=what))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "own_ending", raising=False)
        return load(SCENARIO)

    return write


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", f"its process was killed by signal {int(signal.SIGKILL)}"),
        ("os._exit(7)", "its process ended with exit code 7"),
        ("raise MemoryError", "out of memory"),
    ],
)
def test_a_worker_that_ends_early_is_named(own: Any, what: str, expected: str) -> None:
    with Workers(1) as workers, pytest.raises(SimulationError, match=f"^seed 4: .*{expected}"):
        workers.start(own(what), "seed 4").result(timeout=60)


def test_bad_input_that_shows_late_keeps_its_problems() -> None:
    def late() -> dict[str, Any]:
        raise InputError("line 7 of the trace is broken")

    assert [problem.message for problem in _answer(late).problems] == ["line 7 of the trace is broken"]


def test_stopping_cancels_what_has_not_started(own: Any) -> None:
    workers = Workers(0)
    future = workers.start(own("pass"), "seed 4")
    workers.stop()
    with pytest.raises(CancelledError):
        future.result(timeout=10)


def test_runs_that_wait_take_no_thread(own: Any) -> None:
    loaded, before = own("pass"), threading.active_count()
    with Workers(0) as workers:
        futures = [workers.start(loaded, f"seed {seed}") for seed in range(50)]
        assert threading.active_count() == before
        workers.add_place()
        assert futures[0].result(timeout=60)["completed"] == 5
        assert futures[1].result(timeout=60)["completed"] == 5, "the place goes on to the next"
        assert threading.active_count() <= before + 2, "one may be on its way out"
    assert all(future.done() for future in futures)
