"""How fast the simulator is: requests per CPU-second of whole processes, against a target for each workload.

    python -m benchmarks.speed [--only A,fair] [--scale 0.1] [--repeat 2] [--quick | --growth] [--check]
                               [--json FILE] [--trace PATH] [--mooncake PATH] [--profile]

Every run is a process of its own, pinned to one core: imports, the simulation, and ``summary.json``,
``requests.parquet`` and ``steps.parquet`` are all paid for. CPU is user + system time of that process. A fixed loop of
Python is timed beside each run, and the bars are scaled by it (``benchmarks/speed_machine.py``).
``docs/speed.md`` keeps what was measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.speed_machine import REFERENCE_LOOP_S, REFERENCE_MACHINE, machine
from benchmarks.speed_profile import by_file, profile
from benchmarks.speed_ratios import GROWING, Ratio, cost_of_outputs, growth_of_d, growth_of_routed
from benchmarks.speed_runs import ROOT, Run, RunFailed, measure_best, pinned, say, with_bytecode
from benchmarks.speed_workloads import AZURE, MOONCAKE, Workload, one_request, scenario_of, workloads

TRACES = ROOT.parent / "shared" / "data" / "workloads"
"""Where the traces are looked for; a user gives ``--trace`` and ``--mooncake``."""
PROFILE_LINES = 15

HEADER = (
    "workload",
    "requests",
    "CPU s (slowest run)",
    "requests per CPU-s",
    "at least",
    "met",
    "loop",
    "peak memory",
    "start-up s",
    "simulation s",
    "rest s",
)


@dataclass(frozen=True)
class Row:
    """A measured workload."""

    workload: Workload
    run: Run
    spread: float
    """By how much the slowest run took longer than this one (0.1 = 10 %)."""
    start: Run
    """A run of one request of the same scenario."""

    @property
    def least_rate(self) -> float:
        """The bar on this machine, now: 12,000 are 8,000 where the loop takes half as much time again."""
        return self.workload.least_rate / self.run.slowness

    @property
    def misses(self) -> list[str]:
        """What falls short of the targets of speed and memory, and by how much."""
        run, most_bytes, found = self.run, self.workload.most_bytes, []
        if run.rate < self.least_rate:
            found.append(f"{run.rate / self.least_rate - 1:.1%} in speed")
        if most_bytes is not None and run.peak_bytes > most_bytes:
            found.append(f"{run.peak_bytes / most_bytes - 1:+.1%} in memory")
        return found

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        workload, run = self.workload, self.run
        target = f"{self.least_rate:,.0f}"
        if run.slowness != 1:
            target += f" ({workload.least_rate:,.0f})"
        if workload.most_bytes is not None:
            target += f" and at most {workload.most_bytes / 1e9:.1f} GB"
        return (
            f"{workload.name}: {workload.what}",
            f"{run.requests:,}",
            f"{run.cpu_s:.2f} (+{self.spread:.0%})",
            f"{run.rate:,.0f}",
            target,
            "no: " + ", ".join(self.misses) if self.misses else "yes",
            f"{run.slowness:.2f}",
            f"{run.peak_bytes / 1e9:.2f} GB",
            f"{self.start.cpu_s:.2f}",
            f"{run.simulation_s:.2f}",
            f"{max(run.cpu_s - run.simulation_s - self.start.cpu_s, 0.0):.2f}",
        )

    @property
    def as_json(self) -> dict[str, Any]:
        """The row for ``--json``."""
        names = {"name": self.workload.name, "what": self.workload.what, **asdict(self.run)}
        targets = {"least_rate": self.least_rate, "reference_least_rate": self.workload.least_rate}
        found = {"requests_per_cpu_s": self.run.rate, "spread": self.spread, "start_cpu_s": self.start.cpu_s}
        return {**names, **targets, "most_bytes": self.workload.most_bytes, **found, "misses": self.misses}


@dataclass
class Found:
    """All that was measured."""

    rows: list[Row] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Runs that failed."""

    @property
    def shortfalls(self) -> list[str]:
        """Every miss in a line of its own; none = all good."""
        found = [f"{row.workload.name}: {', '.join(row.misses)}" for row in self.rows if row.misses]
        found += [ratio.text for ratio in self.ratios if not ratio.met]
        return found + self.notes


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
    parser.add_argument("--only", metavar="A,fair", help="these workloads only (F and mooncake are both of their rows)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="so many times the requests (default 1; targets are for 1)"
    )
    parser.add_argument("--repeat", type=int, default=1, help="run each so often and take the fastest (default 1)")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--growth", action="store_true", help="only how CPU per request grows with requests and replicas")
    part.add_argument("--quick", action="store_true", help="without that part")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    parser.add_argument("--trace", metavar="PATH", help=f"the Azure trace of workload E (default {AZURE})")
    parser.add_argument("--mooncake", metavar="PATH", help=f"the trace of the mooncake rows (default {MOONCAKE})")
    parser.add_argument("--profile", action="store_true", help="where the time goes by function instead, with py-spy")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed or a run fails")
    options = parser.parse_args(arguments)
    if not 0 < options.scale <= 10:
        parser.error("--scale must be above 0 and at most 10")
    if options.repeat < 1:
        parser.error("--repeat must be at least 1")
    options.traces = {}
    for option, file_name in (("trace", AZURE), ("mooncake", MOONCAKE)):
        given = getattr(options, option)
        if given is not None and not Path(given).is_file():
            parser.error(f"--{option} {given}: there is no such file")
        beside = TRACES / file_name
        options.traces[file_name] = given or (str(beside) if beside.is_file() else None)
    families = {workload.family.lower(): workload.family for workload in workloads()}
    asked = [name.strip().lower() for name in options.only.split(",")] if options.only else list(families)
    if unknown := [name for name in asked if name not in families]:
        parser.error(f"--only {','.join(unknown)}: the workloads are {', '.join(families.values())}")
    options.only = [families[name] for name in asked]
    return options


def _trace_of(workload: Workload, options: argparse.Namespace) -> str | None:
    path: str | None = options.traces[workload.trace] if workload.trace is not None else None
    return path


def _print_profiles(chosen: Sequence[Workload], options: argparse.Namespace) -> bool:
    is_complete = True
    for workload in chosen:
        say(f"{workload.name}: profiling ...")
        try:
            shares = profile(scenario_of(workload, options.scale, _trace_of(workload, options)))
        except RunFailed as error:
            print(f"\n{workload.name}: failed: {error}")
            is_complete = False
            continue
        for title, lines in (("function", shares), ("file", by_file(shares))):
            print(f"\n{workload.name}: self time by {title}")
            for share, name in lines[:PROFILE_LINES]:
                print(f"  {share:6.1%}  {name}")
    return is_complete


def _measure_table(chosen: Sequence[Workload], options: argparse.Namespace, found: Found) -> None:
    for workload in chosen:
        scenario = scenario_of(workload, options.scale, _trace_of(workload, options))
        try:
            start, _ = measure_best(f"{workload.name}: start-up", one_request(scenario), max(options.repeat, 2))
            run, spread = measure_best(workload.name, scenario, options.repeat)
            found.rows.append(Row(workload, run, spread, start))
            if workload.name == "A":
                found.ratios.append(cost_of_outputs(workload, options.repeat))
            if workload.name == "D":
                found.ratios.append(growth_of_d(workload, run, start, options.repeat))
        except RunFailed as error:
            found.notes.append(f"{workload.name}: failed: {error}")


def _measure_growth(options: argparse.Namespace, found: Found) -> None:
    for name in GROWING:
        if name in options.only:
            try:
                found.ratios.extend(growth_of_routed(name, options.scale, options.repeat))
            except RunFailed as error:
                found.notes.append(f"growth of {name}: failed: {error}")


def _measure(chosen: Sequence[Workload], options: argparse.Namespace) -> Found:
    found = Found()
    if not options.growth:
        _measure_table(chosen, options, found)
    if options.growth or (options.check and not options.quick):
        _measure_growth(options, found)
    return found


def _print_found(found: Found, options: argparse.Namespace) -> None:
    print(machine() + (f"; {options.scale:g} times the requests" if options.scale != 1 else ""))
    print(f"loop: 1.00 = {REFERENCE_LOOP_S} s on the reference machine, {REFERENCE_MACHINE}\n")
    if found.rows:
        print(markdown([HEADER, *(row.cells for row in found.rows)]))
    for ratio in found.ratios:
        print(f"\n{ratio.text}")
    for note in found.notes:
        print(f"\n{note}")
    if options.check:
        print(f"\nmissed: {len(found.shortfalls)}")
        for line in found.shortfalls:
            print(f"- {line}")


def _write_json(path: Path, found: Found, options: argparse.Namespace) -> None:
    document = {
        "machine": machine(),
        "reference": {"machine": REFERENCE_MACHINE, "loop_s": REFERENCE_LOOP_S},
        "scale": options.scale,
        "repeat": options.repeat,
        "rows": [row.as_json for row in found.rows],
        "ratios": [{**asdict(ratio), "met": ratio.met} for ratio in found.ratios],
        "failed": found.notes,
        "shortfalls": found.shortfalls,
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 1 under ``--check`` where a target is missed or a run fails."""
    options = _arguments(arguments)
    chosen = [workload for workload in workloads() if workload.family in options.only and not options.growth]
    skipped = [workload for workload in chosen if workload.trace is not None and not _trace_of(workload, options)]
    chosen = [workload for workload in chosen if workload not in skipped]
    with pinned(), with_bytecode():
        if options.profile:
            good = _print_profiles(chosen, options)
        else:
            found = _measure(chosen, options)
            good = not found.shortfalls
            _print_found(found, options)
            if options.json:
                _write_json(Path(options.json), found, options)
    for workload in skipped:
        option = {AZURE: "the Azure conversation trace (--trace)", MOONCAKE: "Mooncake's trace (--mooncake)"}
        print(f"\n{workload.name}: not run: needs {option[workload.trace or '']}")
    return 0 if good or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
