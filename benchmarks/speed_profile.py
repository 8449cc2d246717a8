"""Where a run's time goes by function and file, as py-spy samples it, for ``benchmarks.speed --profile``."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.speed_runs import ROOT, RunFailed, command
from benchmarks.speed_workloads import Scenario

RATE_HZ = 200
OUTSIDE_PYTHON = "start and end of the process"
"""Samples without a Python function: loading the interpreter, freeing what is left."""


def profile(scenario: Scenario) -> list[tuple[float, str]]:
    """(share of samples, function) by self time, largest first, as py-spy sees a run."""
    beside = Path(sys.executable).with_name("py-spy")
    spy = str(beside) if beside.exists() else shutil.which("py-spy")
    if spy is None:
        raise RunFailed("--profile needs py-spy: pip install py-spy")
    with tempfile.TemporaryDirectory() as name:
        samples = Path(name) / "samples"
        options = ["--rate", str(RATE_HZ), "--function", "--format", "raw", "--output", str(samples)]
        watched = [spy, "record", *options, "--", *command(Path(name), scenario)]
        done = subprocess.run(watched, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode or not samples.exists():
            raise RunFailed(f"py-spy: {done.stderr.strip()}")
        return self_times(samples.read_text(encoding="utf-8"))


def self_times(folded: str) -> list[tuple[float, str]]:
    """Shares by innermost function, of folded stacks (``outer;inner count`` lines)."""
    counts: Counter[str] = Counter()
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        counts[stack.rpartition(";")[2] or OUTSIDE_PYTHON] += int(count)
    return _shares(counts)


def by_file(shares: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Shares of ``name (file:line)`` added up by file."""
    sums: Counter[str] = Counter()
    for share, function in shares:
        sums[function.rpartition("(")[2].rpartition(":")[0] or function] += round(share * 1e9)
    return _shares(sums)


def _shares(counts: Counter[str]) -> list[tuple[float, str]]:
    total = sum(counts.values())
    return [(count / total, name) for name, count in counts.most_common()]
