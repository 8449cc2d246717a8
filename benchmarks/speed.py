"""How fast the simulator is: requests per CPU-second of whole processes, against a target for each workload.

    python -m benchmarks.speed [--only A,B] [--scale 0.1] [--repeat 2] [--trace PATH] [--profile] [--check]

Every run is a process of its own, pinned to one core: imports, the simulation, and ``summary.json``,
``requests.parquet`` and ``steps.parquet`` are all paid for. CPU is user + system time of that process.
``docs/speed.md`` keeps what was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed_workloads import Scenario, Workload, scenario_of, workloads

# The standard library only: the peak memory that Linux reports of a child is never below its parent's.

ROOT = Path(__file__).resolve().parent.parent
TRACE = ROOT.parent / "shared" / "data" / "workloads" / "AzureLLMInferenceTrace_conv.csv.gz"
"""Where workload E's trace is looked for; a user gives ``--trace``."""
SMALL_RUN = 10_000
"""Requests of the short runs that ratios are taken against."""
MOST_GROWTH = 1.3
"""CPU per request of the longest run over that of a short one, at most."""
MOST_FOR_OUTPUTS = 2.0
"""CPU with report and trace over CPU without, at most."""
PROFILE_RATE_HZ = 200
PROFILE_LINES = 15
OUTSIDE_PYTHON = "start and end of the process"
"""Samples without a Python function: loading the interpreter, freeing what is left."""


@dataclass(frozen=True)
class Run:
    """One process: what it did and what it took."""

    requests: int
    cpu_s: float
    simulation_s: float
    """Part of ``cpu_s`` between the first event and the last."""
    peak_bytes: int

    @property
    def rate(self) -> float:
        """Requests per CPU-second."""
        return self.requests / self.cpu_s


@dataclass(frozen=True)
class Check:
    """A line below the table: a ratio of two runs."""

    text: str
    met: bool


class RunFailed(Exception):
    """A run ended with an error; the message has its exit code and what it printed."""


# --- running -----------------------------------------------------------------------------------


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


def _command(folder: Path, scenario: Scenario) -> list[str]:
    path = folder / "scenario.yaml"
    path.write_text(json.dumps(scenario), encoding="utf-8")  # JSON is YAML
    return [sys.executable, "-m", "sim.cli", "run", str(path), "--out", str(folder / "out")]


def measure(scenario: Scenario) -> Run:
    """Run ``scenario`` in a process of its own. Raises RunFailed where that ends with an error."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with open(folder / "stderr", "w+b") as stderr:
            process = subprocess.Popen(_command(folder, scenario), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr)
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
    )


def measure_best(label: str, scenario: Scenario, repeat: int) -> tuple[Run, float]:
    """The fastest of ``repeat`` runs, and by how much the slowest took longer (0.1 = 10 %)."""
    runs = []
    for turn in range(repeat):
        _say(f"{label}: run {turn + 1} of {repeat} ...")
        runs.append(measure(scenario))
        _say(f"{label}: {runs[-1].cpu_s:.2f} s of CPU, {runs[-1].rate:,.0f} requests per CPU-second")
    best = min(runs, key=lambda run: run.cpu_s)
    return best, max(run.cpu_s for run in runs) / best.cpu_s - 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- the two ratios ----------------------------------------------------------------------------


def check_growth(workload: Workload, long_run: Run, start_s: float, repeat: int) -> Check:
    """CPU per request must not grow with the number of requests."""
    size = min(SMALL_RUN, long_run.requests)
    scenario = scenario_of(workload, size / workload.scenario["workload"]["requests"], None)
    short_run, _ = measure_best(f"{workload.name}, {size:,} requests", scenario, repeat)
    ratio = short_run.rate / long_run.rate
    net = [(run.cpu_s - start_s) / run.requests for run in (long_run, short_run)]
    text = (
        f"CPU per request of {workload.name} at {long_run.requests:,} requests: {ratio:.2f} times that at {size:,}"
        f" ({net[0] / net[1]:.2f} times without the start-up of {start_s:.2f} s); at most {MOST_GROWTH}"
    )
    return Check(text, ratio <= MOST_GROWTH)


def check_outputs(workload: Workload, repeat: int) -> Check:
    """Report and trace must not cost more than everything else."""
    scale = SMALL_RUN / workload.scenario["workload"]["requests"]
    runs = [
        measure_best(
            f"{workload.name}, {SMALL_RUN:,} requests, {'all outputs' if on else 'without report and trace'}",
            scenario_of(workload, scale, None, all_outputs=on),
            repeat,
        )[0]
        for on in (False, True)
    ]
    ratio = runs[1].cpu_s / runs[0].cpu_s
    text = (
        f"All outputs on {workload.name} at {SMALL_RUN:,} requests: {ratio:.2f} times the CPU of a run without"
        f" report and trace; at most {MOST_FOR_OUTPUTS}"
    )
    return Check(text, ratio <= MOST_FOR_OUTPUTS)


# --- profile -----------------------------------------------------------------------------------


def profile(scenario: Scenario) -> list[tuple[float, str]]:
    """(share of samples, function) by self time, largest first, as py-spy sees a run."""
    beside = Path(sys.executable).with_name("py-spy")
    spy = str(beside) if beside.exists() else shutil.which("py-spy")
    if spy is None:
        raise RunFailed("--profile needs py-spy: pip install py-spy")
    with tempfile.TemporaryDirectory() as name:
        samples = Path(name) / "samples"
        options = ["--rate", str(PROFILE_RATE_HZ), "--function", "--format", "raw", "--output", str(samples)]
        command = [spy, "record", *options, "--", *_command(Path(name), scenario)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
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


# --- printing ----------------------------------------------------------------------------------

HEADER = (
    "workload",
    "requests",
    "CPU s (slowest run)",
    "requests per CPU-s",
    "at least",
    "met",
    "peak memory",
    "start-up s",
    "simulation s",
    "rest s",
)


def machine() -> str:
    """The machine in one line."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{os.cpu_count()} cores, {model}, {platform.system()}, Python {platform.python_version()}"


def misses(workload: Workload, run: Run) -> list[str]:
    """What falls short of the targets of speed and memory, and by how much."""
    found = []
    if run.rate < workload.least_rate:
        found.append(f"{run.rate / workload.least_rate - 1:.1%} in speed")
    if workload.most_bytes is not None and run.peak_bytes > workload.most_bytes:
        found.append(f"{run.peak_bytes / workload.most_bytes - 1:+.1%} in memory")
    return found


def table_row(workload: Workload, run: Run, spread: float, start_s: float) -> tuple[str, ...]:
    """A measured row."""
    target = f"{workload.least_rate:,.0f}"
    missed = misses(workload, run)
    if workload.most_bytes is not None:
        target += f" and at most {workload.most_bytes / 1e9:.1f} GB"
    return (
        f"{workload.name}: {workload.what}",
        f"{run.requests:,}",
        f"{run.cpu_s:.2f} (+{spread:.0%})",
        f"{run.rate:,.0f}",
        target,
        "no: " + ", ".join(missed) if missed else "yes",
        f"{run.peak_bytes / 1e9:.2f} GB",
        f"{start_s:.2f}",
        f"{run.simulation_s:.2f}",
        f"{max(run.cpu_s - run.simulation_s - start_s, 0.0):.2f}",
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


# --- the command -------------------------------------------------------------------------------


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="A,B", help="these workloads only (F is both of its policies)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="so many times the requests (default 1; targets are for 1)"
    )
    parser.add_argument("--repeat", type=int, default=1, help="run each so often and take the fastest (default 1)")
    parser.add_argument("--trace", metavar="PATH", help=f"the Azure trace of workload E (default {TRACE.name})")
    parser.add_argument("--profile", action="store_true", help="where the time goes by function instead, with py-spy")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed or a run fails")
    options = parser.parse_args(arguments)
    if not 0 < options.scale <= 10:
        parser.error("--scale must be above 0 and at most 10")
    if options.repeat < 1:
        parser.error("--repeat must be at least 1")
    if options.trace is None:
        options.trace = str(TRACE) if TRACE.is_file() else None
    elif not Path(options.trace).is_file():
        parser.error(f"--trace {options.trace}: there is no such file")
    names = sorted({workload.name[0] for workload in workloads()})
    options.only = [name.strip().upper() for name in options.only.split(",")] if options.only else names
    if unknown := set(options.only) - set(names):
        parser.error(f"--only {','.join(sorted(unknown))}: the workloads are {', '.join(names)}")
    return options


def _print_profiles(chosen: Sequence[Workload], options: argparse.Namespace) -> bool:
    is_complete = True
    for workload in chosen:
        _say(f"{workload.name}: profiling ...")
        try:
            shares = profile(scenario_of(workload, options.scale, options.trace))
        except RunFailed as error:
            print(f"\n{workload.name}: failed: {error}")
            is_complete = False
            continue
        for title, lines in (("function", shares), ("file", by_file(shares))):
            print(f"\n{workload.name}: self time by {title}")
            for share, name in lines[:PROFILE_LINES]:
                print(f"  {share:6.1%}  {name}")
    return is_complete


def _print_table(chosen: Sequence[Workload], options: argparse.Namespace) -> bool:
    """Whether everything that ran met its target."""
    rows: list[tuple[str, ...]] = [HEADER]
    checks: list[Check] = []
    notes: list[str] = []
    all_met = True
    start, _ = measure_best("start-up (one request)", scenario_of(workloads()[0], 1e-9, None), max(options.repeat, 2))
    start_s = start.cpu_s
    for workload in chosen:
        try:
            run, spread = measure_best(
                workload.name, scenario_of(workload, options.scale, options.trace), options.repeat
            )
            rows.append(table_row(workload, run, spread, start_s))
            all_met = all_met and not misses(workload, run)
            if workload.name == "A":
                checks.append(check_outputs(workload, options.repeat))
            if workload.name == "D":
                checks.append(check_growth(workload, run, start_s, options.repeat))
        except RunFailed as error:
            notes.append(f"{workload.name}: failed: {error}")
            all_met = False
    print(machine() + (f"; {options.scale:g} times the requests" if options.scale != 1 else "") + "\n")
    print(markdown(rows))
    for check in checks:
        print(f"\n{check.text}: {'met' if check.met else 'MISSED'}")
    for note in notes:
        print(f"\n{note}")
    return all_met and all(check.met for check in checks)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 1 where not even one request can be simulated, and, under ``--check``,
    where a target is missed or a run fails."""
    options = _arguments(arguments)
    chosen = [workload for workload in workloads() if workload.name[0] in options.only]
    skipped = [workload for workload in chosen if "trace" in workload.scenario["workload"] and options.trace is None]
    chosen = [workload for workload in chosen if workload not in skipped]
    try:
        with pinned(), with_bytecode():
            good = _print_profiles(chosen, options) if options.profile else _print_table(chosen, options)
    except RunFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    for workload in skipped:
        print(f"\n{workload.name}: not run: needs the Azure conversation trace (--trace)")
    return 0 if good or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
