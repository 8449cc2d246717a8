"""One measured run of ``benchmarks.speed``: a whole process on one core, with the fixed loop timed beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed_machine import slowness
from benchmarks.speed_workloads import Scenario

# The standard library only: the peak memory that Linux reports of a child is never below its parent's.

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Run:
    """One process: what it did and what it took."""

    requests: int
    cpu_s: float
    simulation_s: float
    """Part of ``cpu_s`` between the first event and the last."""
    peak_bytes: int
    slowness: float = 1.0
    """How much longer the fixed loop took beside this run than on the reference machine."""

    @property
    def rate(self) -> float:
        """Requests per CPU-second."""
        return self.requests / self.cpu_s

    @property
    def reference_cpu_s(self) -> float:
        """CPU-seconds that the reference machine would have taken: 3 s at a slowness of 1.5 are 2 s."""
        return self.cpu_s / self.slowness


class RunFailed(Exception):
    """A run ended with an error; the message has its exit code and what it printed."""


@contextmanager
def with_bytecode() -> Iterator[None]:
    """Child processes keep and find compiled modules, as those of an installed command do, whatever is set here."""
    before = dict(os.environ)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYTHONPYCACHEPREFIX"] = folder
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def pinned() -> Iterator[None]:
    """This process, and so every child of it, on one core, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def command(folder: Path, scenario: Scenario) -> list[str]:
    """The command that runs ``scenario`` with its files in ``folder``."""
    path = folder / "scenario.yaml"
    path.write_text(json.dumps(scenario), encoding="utf-8")  # JSON is YAML
    return [sys.executable, "-m", "sim.cli", "run", str(path), "--out", str(folder / "out")]


def measure(scenario: Scenario) -> Run:
    """Run ``scenario`` in a process of its own. Raises RunFailed where that ends with an error."""
    before = slowness()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with open(folder / "stderr", "w+b") as stderr:
            process = subprocess.Popen(command(folder, scenario), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                stderr.seek(0)
                raise RunFailed(f"exit {process.returncode}: {stderr.read().decode(errors='replace').strip()}")
        summary = json.loads((folder / "out" / "summary.json").read_text(encoding="utf-8"))
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(
        requests=summary["counts"]["submitted"],
        cpu_s=usage.ru_utime + usage.ru_stime,
        simulation_s=summary["run"]["cpu_s"],
        peak_bytes=usage.ru_maxrss * unit,
        slowness=(before + slowness()) / 2,
    )


def measure_best(label: str, scenario: Scenario, repeat: int) -> tuple[Run, float]:
    """The fastest of ``repeat`` runs, and by how much the slowest took longer (0.1 = 10 %)."""
    runs = []
    for turn in range(repeat):
        say(f"{label}: run {turn + 1} of {repeat} ...")
        runs.append(measure(scenario))
        say(f"{label}: {runs[-1].cpu_s:.2f} s of CPU, {runs[-1].rate:,.0f} requests per CPU-second")
    best = min(runs, key=lambda run: run.reference_cpu_s)
    return best, max(run.reference_cpu_s for run in runs) / best.reference_cpu_s - 1


def say(text: str) -> None:
    """Print to stderr at once, beside the table on stdout."""
    print(text, file=sys.stderr, flush=True)
