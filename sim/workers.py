"""Runs side by side, each in a process of its own: all CPUs work, and a run that dies takes none along.

A worker is a fresh interpreter, not a fork and not ``multiprocessing``: it works from notebooks and from scripts
without a ``__main__`` guard. It ends by itself when the process that started it has gone.
"""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from sim.errors import InputError, Problem, SimrunError, SimulationError

if TYPE_CHECKING:
    from sim.scenario.loader import LoadedScenario

ROOT = str(Path(__file__).resolve().parents[1])
START = "import sys; sys.path.insert(0, sys.argv[1]); from sim.workers import serve; serve()"
SIZE_BYTES = 8
POLL_S = 0.1
STOP_S = 5.0
"""How long killed workers are waited for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker found: a summary, or why there is none."""

    summary: dict[str, Any] | None = None
    problems: tuple[Problem, ...] = ()
    """Of an input that cannot be used."""
    failure: str = ""


@dataclass(frozen=True, slots=True)
class _Order:
    """A run that is to be made."""

    future: Future[dict[str, Any]]
    payload: bytes
    """The scenario as it was when the run was asked for."""
    name: str


class Workers:
    """At most ``places`` runs at a time. Leaving the ``with`` block kills those that are still under way."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._lock = threading.Lock()
        self._waiting: deque[_Order] = deque()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._threads: list[threading.Thread] = []
        """One for each run under way, and those that have ended."""
        self._under_way = 0
        self._stopped = False

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, loaded: LoadedScenario, name: str) -> Future[dict[str, Any]]:
        """The summary of ``loaded``, some time later. ``name`` (``seed 4``) opens the message of a failure.

        The future raises InputError or SimulationError, as the run did.
        """
        order = _Order(Future(), pickle.dumps((sys.path, pickle.dumps(loaded))), name)
        with self._lock:
            self._waiting.append(order)
            self._fill()
        return order.future

    def add_place(self) -> None:
        """One more run may go on at a time."""
        with self._lock:
            self._places += 1
            self._fill()

    def stop(self) -> None:
        """Kill what runs, start nothing more, and wait until all processes have gone."""
        with self._lock:
            self._stopped = True
            for order in self._waiting:
                order.future.cancel()
            self._waiting.clear()
            for process in self._processes:
                process.kill()
            threads = list(self._threads)
        until_s = time.monotonic() + STOP_S
        for thread in threads:
            thread.join(max(0.0, until_s - time.monotonic()))

    def _fill(self) -> None:
        """Give free places to those that wait longest. The lock is held."""
        while self._waiting and self._under_way < self._places and not self._stopped:
            self._under_way += 1
            thread = threading.Thread(target=self._work, args=(self._waiting.popleft(),), daemon=True)
            self._threads = [each for each in self._threads if each.is_alive()] + [thread]
            thread.start()

    def _work(self, order: _Order) -> None:
        try:
            process = self._open()
            if process is None:
                order.future.cancel()
                return
            try:
                order.future.set_result(_ask(process, order.payload, order.name))
            finally:
                with self._lock:
                    self._processes.discard(process)
        except BaseException as error:
            order.future.set_exception(error)
        finally:
            with self._lock:
                self._under_way -= 1
                self._fill()

    def _open(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._stopped:
                return None
            # A session of its own: Ctrl-C reaches this process only, which then ends the workers.
            process = subprocess.Popen(
                [sys.executable, "-c", START, ROOT],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            self._processes.add(process)
            return process


def _ask(process: subprocess.Popen[bytes], payload: bytes, name: str) -> dict[str, Any]:
    """Send the payload, and wait for the answer. Standard input stays open: its end tells the worker to go."""
    with process:
        if process.stdin is None or process.stdout is None:
            raise SimulationError(f"{name}: no pipe to its process")
        try:
            process.stdin.write(len(payload).to_bytes(SIZE_BYTES, "big") + payload)
            process.stdin.flush()
            raw = process.stdout.read()
        except BrokenPipeError:
            raw = b""
        code = process.wait()
    if not raw:
        ended = f"was killed by signal {-code} (out of memory?)" if code < 0 else f"ended with exit code {code}"
        raise SimulationError(f"{name}: its process {ended}; try fewer at a time: --jobs 1")
    answer: Answer = pickle.loads(raw)
    if answer.problems:
        raise InputError(list(answer.problems))
    if answer.summary is None:
        raise SimulationError(f"{name}: {answer.failure}")
    return answer.summary


def serve() -> None:
    """The worker's side: one scenario from standard input, its answer to standard output."""
    # What policies print must not get between the bytes of the answer.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    path, scenario = pickle.loads(_read(0))
    # Ours, before the path of the parent's user can have a folder of that name in front.
    importlib.import_module("policies")
    sys.path[:] = path
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _write(out, pickle.dumps(_answer(lambda: _simulate(scenario))))
    os._exit(0)  # no waiting for the thread above, which holds standard input


def _write(out: BinaryIO, data: bytes) -> None:
    out.write(data)
    out.flush()


def _read(stream: int) -> bytes:
    def exactly(count: int) -> bytes:
        parts = []
        while count:
            part = os.read(stream, count)
            if not part:
                os._exit(1)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    return exactly(int.from_bytes(exactly(SIZE_BYTES), "big"))


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


def _simulate(scenario: bytes) -> dict[str, Any]:
    from sim.run import run

    return run(pickle.loads(scenario)).summary


def _answer(simulate: Callable[[], dict[str, Any]]) -> Answer:
    """What ``simulate`` returns, or what it raises as something that can be sent."""
    try:
        return Answer(simulate())
    except InputError as error:
        return Answer(problems=tuple(error.problems))
    except SimrunError as error:
        return Answer(failure=str(error))
    except MemoryError:
        return Answer(failure="out of memory; try fewer requests, or fewer runs at a time: --jobs 1")
    except Exception as error:
        return Answer(failure=_in_one_line(error))


def _in_one_line(error: BaseException) -> str:
    import traceback

    while error.__cause__ is not None:
        error = error.__cause__  # SimPy raises again what a process raised
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}{where}"
