"""How far predictions are from real engines: every public measured set, predicted against measured.

    python -m benchmarks.accuracy [--data DIR] [--quick] [--jobs N] [--page docs/accuracy.md] [--check]
    python -m benchmarks.accuracy [--data DIR] --only SET [--half training|validation|both] [--rows] [--check]
    python -m benchmarks.accuracy --profile A --profile B [--scenario FILE.yaml]
    python -m benchmarks.accuracy --data DIR --fit-host

The first prints the table of bars. ``--page docs/accuracy.md`` writes that page and ``docs/accuracy-tables.md``,
``--write-validated`` what the product reads of it. Without the data only single operators are scored.
The second scores the sets whose name has ``SET`` in it (``InferenceX``, ``b200``, ``0.15.1``) and prints no page,
with ``--rows`` the error of each run. The third shows what two profiles predict of a scenario and which operator makes
the difference, the fourth fits the time that the host takes on the half of one set that is kept for it.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import sim
from benchmarks.accuracy_experiment import Experiment, Section, Sets
from benchmarks.accuracy_front import front_page
from benchmarks.accuracy_host import fit_host
from benchmarks.accuracy_known import write_known
from benchmarks.accuracy_memory import failed_memory_checks, memory_rows, memory_section
from benchmarks.accuracy_operators import ProfileScore, operator_scores
from benchmarks.accuracy_page import operator_table, plain, tables_page
from benchmarks.accuracy_rows import row_lines, score_lines
from benchmarks.accuracy_runs import Outcome, predict_all
from benchmarks.accuracy_scores import MARGIN, scores
from benchmarks.accuracy_sets import read_sets
from benchmarks.accuracy_validated import write_validated
from sim.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
"""Where the data files are looked for; a user gives ``--data``."""
QUICK_EACH = 12
"""``--quick`` takes every so manyth experiment of a set."""
HALVES = ("training", "validation", "both")
DEFAULT_SCENARIO = ROOT / "scenarios" / "quickstart.yaml"


def some(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Every ``QUICK_EACH``-th validation experiment of each set, the first included."""
    taken: dict[str, int] = {}
    chosen = []
    for each in experiments:
        if each.is_training:
            continue
        place = taken[each.group] = taken.get(each.group, -1) + 1
        if place % QUICK_EACH == 0:
            chosen.append(each)
    return chosen


def validation_sizes(experiments: Sequence[Experiment]) -> Counter[str]:
    """Validation experiments of each set."""
    return Counter(each.group for each in experiments if not each.is_training)


def failed_checks(
    outcomes: Sequence[Outcome], operators: Sequence[ProfileScore], sizes: Mapping[str, int] | None = None
) -> list[str]:
    """One line for each thing that ``--check`` does not let pass.

    ``sizes``: validation experiments of each set, where some were left out. A few of a set say little: they are allowed
    twice as much, and a single one of several everything.
    """
    lines = []
    for each in scores(outcomes):
        is_part = sizes is not None and each.num_experiments < sizes[each.bar.group]
        allowed = each.bar.held * (2.0 if is_part else 1.0)
        if each.scored > allowed and not (is_part and each.num_experiments == 1):
            lines.append(f"{each.bar.group}: {each.bar.label} off by {plain(each.scored)}, at most {plain(allowed)}")
    for profile in operators:
        worst = profile.worst_layer_operator
        if profile.bar is not None and worst is not None and worst > MARGIN * profile.bar:
            lines.append(f"{profile.name}: operators off by {plain(worst)}, at most {plain(MARGIN * profile.bar)}")
    lines += [f"{each.experiment.group}: {each.experiment.name}: {each.failure}" for each in outcomes if each.failure]
    return lines


def head(num_experiments: int, cpu_s: float) -> str:
    """When and with what the page was made."""
    return (
        f"Made on {date.today().isoformat()} with version {sim.__version__}, Python {platform.python_version()}:"
        f" {num_experiments} simulated runs in {cpu_s:.0f} s."
    )


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help=f"folder of the measured sets (default {DATA.name})")
    parser.add_argument("--only", metavar="SET", help="only sets whose name has this in it, without a page")
    parser.add_argument(
        "--half", choices=HALVES, default="both", help="with --only: training (to look for causes), validation, both"
    )
    parser.add_argument("--rows", action="store_true", help="with --only: the error of each run")
    parser.add_argument("--quick", action="store_true", help="a few experiments of each set, two profiles")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page there, and its tables beside it")
    parser.add_argument(
        "--write-validated", type=Path, metavar="FILE", help="write which kinds of run were measured, and their errors"
    )
    parser.add_argument("--write-known", type=Path, metavar="FILE", help="write the bars that are missed, for --check")
    parser.add_argument("--fit-host", action="store_true", help="fit the host's time on its training half instead")
    parser.add_argument(
        "--check", action="store_true", help="exit with 1 where a bar is missed by more than its margin"
    )
    parser.add_argument("--profile", action="append", metavar="NAME", help="twice: compare these two instead")
    parser.add_argument("--scenario", type=Path, default=DEFAULT_SCENARIO, help="what --profile compares on")
    options = parser.parse_args(arguments)
    if options.profile is not None and len(options.profile) != 2:
        parser.error("--profile must be given twice")
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    if options.quick and options.page is not None:
        parser.error("--page needs all experiments, not --quick")
    if options.only is None and (options.rows or options.half != "both"):
        parser.error("--rows and --half need --only")
    if options.only is not None and options.page is not None:
        parser.error("--page needs all sets, not --only")
    for name, given in (("validated", options.write_validated), ("known", options.write_known)):
        if given is not None and (options.only is not None or options.quick):
            parser.error(f"--write-{name} needs all experiments, not --only or --quick")
    if options.data is not None and not options.data.is_dir():
        parser.error(f"--data {options.data}: there is no such folder")
    if options.page is not None and (options.page.is_dir() or not options.page.parent.is_dir()):
        parser.error(f"--page {options.page}: a folder, or in one that is not there; give a file's name")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 1 where ``--check`` finds something, 2 for a wrong profile or scenario."""
    options = _arguments(arguments)
    if options.profile is not None:
        return _compare(options.scenario, options.profile)
    sets = read_sets(options.data or DATA)
    if not sets.experiments:
        print(f"no measured sets under {options.data or 'the default folder'}: single operators only", file=sys.stderr)
    if options.fit_host:
        print(fit_host(sets.experiments, options.jobs))
        return 0
    if options.only is not None:
        return _only(sets.experiments, options)
    started = time.perf_counter()
    outcomes = predict_all(some(sets.experiments) if options.quick else sets.experiments, options.jobs)
    operators = operator_scores(quick=options.quick)
    memory = memory_part(options.data or DATA)
    print(_scores(outcomes))
    print(f"\n{operator_table(operators)}\n\n{memory.text}")
    if options.page is not None:
        made = head(len(outcomes), time.perf_counter() - started)
        write_pages(options.page, sets, outcomes, operators, (memory,), made)
    if options.write_validated is not None:
        write_validated(outcomes, options.write_validated)
    if options.write_known is not None:
        write_known(scores(outcomes), options.write_known)
    sizes = validation_sizes(sets.experiments) if options.quick else None
    failures = [*failed_checks(outcomes, operators, sizes), *memory.failures]
    return _checked(failures if options.check else [])


def memory_part(data: Path) -> Section:
    """KV cache sizes that vLLM logged at its start, against the memory plan."""
    rows = memory_rows(data)
    text = "Of vLLM's logs; the starts are in [memory.md](memory.md).\n\n" + memory_section(rows, data)
    return Section("KV cache sizes", text, tuple(failed_memory_checks(rows)))


def _scores(outcomes: Sequence[Outcome]) -> str:
    lines = []
    for half, is_training in (("training", True), ("validation", False)):
        lines += score_lines(scores(outcomes, training=is_training), half)
    return "\n".join(lines)


def write_pages(
    page: Path,
    sets: Sets,
    outcomes: Sequence[Outcome],
    operators: Sequence[ProfileScore],
    sections: Sequence[Section],
    made: str,
) -> None:
    """The page, and beside it the one with the tables: ``accuracy.md``, ``accuracy-tables.md``."""
    tables = page.with_name(f"{page.stem}-tables{page.suffix}")
    page.write_text(front_page(outcomes, operators, made, tables.name, sections), encoding="utf-8")
    tables.write_text(tables_page(sets, outcomes, operators, made), encoding="utf-8")


def _checked(failures: Sequence[str]) -> int:
    """Tell them; the exit code."""
    for line in failures:
        print(f"check: {line}", file=sys.stderr)
    return 1 if failures else 0


def chosen(experiments: Sequence[Experiment], name: str, half: str) -> list[Experiment]:
    """Those of the sets whose name has ``name`` in it, of that half."""
    return [
        each
        for each in experiments
        if name.lower() in each.group.lower() and half in ("both", "training" if each.is_training else "validation")
    ]


def _only(experiments: Sequence[Experiment], options: argparse.Namespace) -> int:
    some_of = chosen(experiments, options.only, options.half)
    if not some_of:
        names = ", ".join(dict.fromkeys(each.group for each in experiments)) or "none"
        print(f"benchmarks.accuracy: no run of a set with {options.only!r} in its name; sets: {names}", file=sys.stderr)
        return 2
    outcomes = predict_all(some(some_of) if options.quick else some_of, options.jobs)
    if options.rows:
        print("\n".join(row_lines(outcomes)))
        print()
    print(_scores(outcomes))
    sizes = validation_sizes(some_of) if options.quick else None
    return _checked(failed_checks(outcomes, (), sizes) if options.check else [])


def _compare(scenario: Path, profiles: list[str]) -> int:
    from benchmarks.accuracy_compare import compare

    try:
        print(compare(scenario, profiles))
    except (InputError, LookupError) as error:  # LookupError: a profile without what every step needs
        print(f"benchmarks.accuracy: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
