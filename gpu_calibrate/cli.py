"""``gpu-calibrate``: the command line. Results go to standard output, everything else to standard error.

Imports of anything heavy are inside the commands, so that ``gpu-calibrate --help`` answers at once.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sim.errors import InputError, OutputError, Problem, SimrunError

if TYPE_CHECKING:
    from gpu_calibrate.commands.calibration import Calibration
    from sim.latency.profile.file import Profile

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130
TRACEBACK_VARIABLE = "SIMRUN_TRACEBACK"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk answers where the results are printed."""
HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 80}
DEFAULT_LIMIT_S, QUICK_LIMIT_S = 255.0, 44.0
"""Seconds of timing after which what is left is left out; start, mixed steps and fit come on top."""


@click.group(context_settings=HELP, epilog="Exit codes: 0 done; 1 failed, or a profile is not fit; 2 bad input.")
@click.version_option(package_name="simrun-llm", message="gpu-calibrate %(version)s")
def cli() -> None:
    """Measure this machine's GPU: one command, one profile that scenarios name."""


@cli.command("run", context_settings=HELP)
@click.option("--out", required=True, metavar="PROFILE", help="Write the profile here (.json or .json.gz).")
@click.option("--quick", is_flag=True, help="Under a minute: few models, coarse grid, no mixed steps.")
@click.option("--gpu", metavar="PRESET", help="Hold the card against this preset's datasheet; default: by its name.")
@click.option("--name", metavar="NAME", help="The profile's name; default: the file's.")
@click.option("--fresh", is_flag=True, help="Throw away what an earlier, unfinished run has left.")
@click.option(
    "--budget", type=click.FloatRange(min=1), metavar="SECONDS", help="Estimated time of measuring; no mixed steps."
)
@click.option("--only", multiple=True, metavar="OPERATOR", help="Time these operators only; may be repeated.")
def run_command(
    out: str, quick: bool, gpu: str | None, name: str | None, fresh: bool, budget: float | None, only: tuple[str, ...]
) -> int:
    """Measure this GPU, under five minutes, and write its profile.

    Every result is kept at once in PROFILE.partial.jsonl. After Ctrl-C, or if the
    GPU fails, the same command goes on where it was.
    """
    from gpu_calibrate.commands import calibration as runs
    from gpu_calibrate.plan import grid
    from gpu_calibrate.timing.store import Store, partial_path

    path = Path(out)
    _check_out(path, "--out")
    _check_operators(only)
    if budget is not None and not isfinite(budget):
        raise InputError(f"--budget {budget:g}: give the seconds that measuring may take")
    from gpu_calibrate.device.cuda import open_device

    device = open_device(gpu)
    seconds = budget or (grid.QUICK_S if quick else grid.DEFAULT_S)
    plan = runs.limited(grid.plan(device.facts.gpu, seconds, device.facts.num_gpus), only)
    partial = partial_path(path)
    if fresh:
        partial.unlink(missing_ok=True)
    limit_s = QUICK_LIMIT_S if quick else DEFAULT_LIMIT_S if budget is None else 1.5 * budget
    click.echo(f"{device.facts.name}: {len(plan.points):,} points, about {plan.seconds:.0f} s", err=True)
    with Store(partial, device.facts) as store, _Bar() as bar:
        short = quick or budget is not None
        extras = [] if only else runs.cuda_extras(device, plan, path.resolve().parent, short)
        calibration = runs.Calibration(device, plan, store, limit_s, extras, progress=bar)
        calibration.measure()
        return _finish_run(calibration, path, name or runs.default_name(path))


def _finish_run(calibration: Calibration, path: Path, name: str) -> int:
    """Write the profile, or say how to go on."""
    from gpu_calibrate.commands.calibration import profile_of
    from sim.latency.profile.file import save_profile

    command = shlex.join(["gpu-calibrate", *sys.argv[1:]]) if len(sys.argv) > 1 else "gpu-calibrate run"
    store = calibration.store
    if calibration.interrupted:
        kept = len(store.kept.measurements)
        click.echo(f"gpu-calibrate: interrupted; {kept:,} points are kept in {store.path}", err=True)
        click.echo("gpu-calibrate: the same command, without --fresh, goes on from there", err=True)
        return EXIT_INTERRUPTED
    if not store.kept.measurements:
        raise SimrunError(f"nothing could be timed: {_first_failure(calibration)}")
    profile = profile_of(calibration, name, command)
    try:
        save_profile(profile, path)
    except OSError as error:
        raise OutputError(str(path), error, f"what was measured is kept in {store.path}") from error
    click.echo(_summary(profile, path))
    untimed = calibration.num_untimed
    if untimed:
        click.echo(
            f"gpu-calibrate: no time was left for {untimed:,} of {len(calibration.plan.points):,} points; "
            "the same command goes on with them",
            err=True,
        )
    else:
        store.path.unlink(missing_ok=True)
    return _tell_gates(profile)


def _tell_gates(profile: Profile) -> int:
    """Say which gates failed; the exit code after the profile was written."""
    for gate in profile.failed_gates:
        click.echo(f"gpu-calibrate: gate {gate.name} failed: {gate.detail}", err=True)
    return EXIT_FAILED if profile.failed_gates else EXIT_DONE


def _first_failure(calibration: Calibration) -> str:
    return next((each.reason for each in calibration.store.kept.failures.values()), "no point was tried")


def _summary(profile: Profile, path: Path) -> str:
    points = sum(len(curve.at) for operator in profile.operators.values() for curve in operator.curves)
    errors = ", ".join(
        f"{operator} {kinds[kind].median:.1%}"
        for operator, kinds in profile.errors.items()
        for kind in ("random_points", "layers")
        if kind in kinds
    )
    return f"{path}: {points:,} points; median held-out error: {errors or 'not measured'}"


def _check_out(path: Path, option: str) -> None:
    """Raises InputError where a file cannot be written there: better now than in five minutes."""
    problem = None
    if path.is_dir():
        problem = "a folder; give a file's name"
    elif not path.parent.is_dir():
        problem = f"there is no folder {path.parent}"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        problem = "no permission to write there"
    if problem:
        raise InputError(f"{option} {path}: {problem}")


def _check_operators(names: Sequence[str]) -> None:
    from sim.latency.profile.layout import OPERATORS

    unknown = [name for name in names if name not in OPERATORS]
    if unknown:
        known = ", ".join(OPERATORS)
        raise InputError([Problem(f"--only {name}: no such operator; known are {known}") for name in unknown])


class _Bar:
    """Progress on standard error, on a terminal only."""

    def __init__(self) -> None:
        self._wanted = sys.stderr.isatty()
        self._progress: Any = None
        self._task: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, done: int, total: int, what: str) -> None:
        if not self._wanted:
            return
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("measuring"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("points, {task.fields[what]}"),
                TimeRemainingColumn(compact=True),
                console=Console(file=sys.stderr),
                transient=True,
            )
            self._task = self._progress.add_task("run", total=None, what="")
            self._progress.start()
        self._progress.update(self._task, completed=done, total=total, what=what)


def _load(name: str) -> Profile:
    """A profile file, or a built-in profile by name; gates that failed do not matter for looking at them."""
    from sim.latency.gpus import GPUS
    from sim.latency.profile.file import load_profile
    from sim.latency.profile.library import BUILTIN, SUFFIX, builtin_names

    path = Path(name)
    if not path.exists() and name in builtin_names():
        path = BUILTIN / f"{name}{SUFFIX}"
    profile = load_profile(path, allow_failed_gates=True)
    if profile.device.gpu not in GPUS:
        known = ", ".join(GPUS)
        raise InputError(Problem(f"device.gpu: no such GPU {profile.device.gpu!r}; known are {known}", file=str(path)))
    return profile


def _load_both(first: str, second: str) -> tuple[Profile, Profile]:
    problems: list[Problem] = []
    found = []
    for name in (first, second):
        try:
            found.append(_load(name))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return found[0], found[1]


@cli.command("check", context_settings=HELP)
@click.argument("profile")
def check_command(profile: str) -> int:
    """Say whether a profile can be relied on: gates and held-out errors.

    Exit code 1 where a gate failed or an error is larger than it may be.
    """
    from gpu_calibrate.commands.check import check
    from gpu_calibrate.commands.show import percent, print_errors, print_gates

    loaded = _load(profile)
    verdict = check(loaded)
    click.echo(f"{loaded.name}: {loaded.device.name}, {loaded.source.kind}")
    print_errors(verdict.errors, click.echo)
    print_gates(verdict.gates, click.echo)
    click.echo("\nbars")
    for bar in verdict.bars:
        click.echo(f"  {bar.mark:<9}  {bar.operator} {bar.kind}: {percent(bar.value)}, at most {percent(bar.limit)}")
    reasons = "; ".join(verdict.reasons)
    click.echo(f"\n{f'NOT fit to predict from: {reasons}' if reasons else 'fit to predict from'}")
    return EXIT_DONE if verdict.passed else EXIT_FAILED


@cli.command("show", context_settings=HELP)
@click.argument("profile")
@click.option("--plots", metavar="DIR", help="Write roofline, GEMM utilisation and decode bandwidth as PNG.")
def show_command(profile: str, plots: str | None) -> int:
    """Print what a profile holds. PROFILE is a file or a built-in profile's name."""
    from gpu_calibrate.commands.show import print_profile

    if plots is not None and Path(plots).exists() and not Path(plots).is_dir():
        raise InputError(f"--plots {plots}: a file, not a folder")
    loaded = _load(profile)
    print_profile(loaded, click.echo)
    if plots is not None:
        from gpu_calibrate.commands.plots import write_plots

        for path in write_plots(loaded, Path(plots)):
            click.echo(f"wrote {path}", err=True)
    return EXIT_DONE


@cli.command("import", context_settings=HELP)
@click.option("--from", "source", required=True, metavar="SOURCE", help="aiconfigurator, vidur or llmservingsim.")
@click.option("--gpu", required=True, metavar="GPU", help="A preset's name, or the source's own (a100_sxm).")
@click.option("--engine", default="vllm", show_default=True, help="Among the tables of aiconfigurator.")
@click.option("--version", metavar="VERSION", help="Of that engine; default: the newest there is.")
@click.option("--path", metavar="PATH", help="Where the tables are, if not in an installed package.")
@click.option("--name", metavar="NAME", help="The profile's name.")
@click.option("--out", required=True, metavar="PROFILE", help="Write the profile here.")
def import_command(
    source: str, gpu: str, engine: str, version: str | None, path: str | None, name: str | None, out: str
) -> int:
    """Make a profile from tables that others have measured.

    Exit code 1 where they lack what every step needs: it can be shown and
    compared, not predicted from.
    """
    from gpu_calibrate.fit.held_out import held_out_errors
    from gpu_calibrate.importers import import_profile
    from sim.latency.profile.file import save_profile

    target = Path(out)
    _check_out(target, "--out")
    command = shlex.join(["gpu-calibrate", *sys.argv[1:]])
    folder = None if path is None else Path(path)
    imported = import_profile(source, gpu=gpu, engine=engine, version=version, path=folder, name=name, command=command)
    profile = imported.model_copy(update={"errors": held_out_errors(imported)})
    try:
        save_profile(profile, target)
    except OSError as error:
        raise OutputError(str(target), error) from error
    click.echo(_summary(profile, target))
    return _tell_gates(profile)


@cli.command("compare", context_settings=HELP)
@click.argument("first")
@click.argument("second")
@click.option("--predicted", is_flag=True, help="Where grids differ: SECOND's predictions at the points of FIRST.")
def compare_command(first: str, second: str, predicted: bool) -> int:
    """Ratios of two profiles, operator by operator: repeatability, or two GPUs."""
    from gpu_calibrate.commands.compare import compare, predicted_rows, print_rows

    a, b = _load_both(first, second)
    click.echo(f"A {a.name}: {a.device.name}, {a.source.origin}\nB {b.name}: {b.device.name}, {b.source.origin}\n")
    print_rows((predicted_rows if predicted else compare)(a, b), click.echo)
    return EXIT_DONE


@cli.command("doctor", context_settings=HELP)
def doctor_command() -> int:
    """Say whether this machine is fit to be measured, and what to do if not.

    Changes nothing. Exit code 1 where something would spoil a measurement.
    """
    from gpu_calibrate.commands.doctor import examine, software

    findings = [*examine(), *software()]
    for finding in findings:
        mark = {"ok": "ok  ", "note": "note", "bad": "BAD "}[finding.verdict]
        click.echo(f"{mark} {finding.what}: {finding.detail}")
        if finding.remedy and finding.verdict != "ok":
            click.echo(f"     -> {finding.remedy}")
    bad = sum(finding.verdict == "bad" for finding in findings)
    click.echo(f"\n{'fit to be measured' if not bad else f'not fit to be measured: {bad} problems'}")
    return EXIT_FAILED if bad else EXIT_DONE


@cli.command("selftest", context_settings=HELP)
@click.option("--out", default="selftest", show_default=True, metavar="DIR", help="Keep results and profiles here.")
@click.option(
    "--part", "parts", multiple=True, metavar="PART", help="kernels, ladder, cublas, calibrate or repeat; default: all."
)
@click.option("--gpu", metavar="PRESET", help="As for `run`.")
@click.option("--table", "table_only", is_flag=True, help="Measure nothing; print the table of what is in DIR.")
def selftest_command(out: str, parts: tuple[str, ...], gpu: str | None, table_only: bool) -> int:
    """Measure everything that the kit promises, and print it as a table.

    Kernels against float64, the ladder, cuBLAS through torch and CuPy, a whole
    calibration, part of it again in another process: under ten minutes. Exit
    code 1 where something is missed.
    """
    from gpu_calibrate.commands import selftest

    unknown = [part for part in parts if part not in selftest.PARTS]
    if unknown:
        known = ", ".join(selftest.PARTS)
        raise InputError([Problem(f"--part {part}: no such part; there are {known}") for part in unknown])
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {out}: a file, not a folder")
    if not table_only:
        from gpu_calibrate.device.cuda import import_cupy, import_torch

        wanted = parts or selftest.PARTS
        import_torch()
        if not set(wanted) <= set(selftest.WITHOUT_CUPY):
            import_cupy()
        selftest.run_parts(wanted, folder, gpu, lambda text: click.echo(text, err=True))
    if not folder.is_dir():
        raise InputError(f"--out {out}: no such folder; without --table the self-test makes it")
    command = "gpu-calibrate selftest" + "".join(f" --part {part}" for part in parts)
    try:
        text = selftest.markdown(folder, command)
        rows = selftest.table(folder)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"--out {out}: a result there is not as this version's parts write it ({type(error).__name__}: {error}); "
            "run them again, or name another folder"
        ) from error
    try:
        (folder / "selftest.md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(str(folder), error) from error
    selftest.write_part(folder, "selftest", selftest.as_json(folder))
    click.echo(text, nl=False)
    return EXIT_FAILED if any(row.met is False for row in rows) else EXIT_DONE


def _guarded(action: Callable[[], Any]) -> int:
    """Run ``action`` and turn whatever goes wrong into one clear line and an exit code."""
    try:
        code = action()
        return code if isinstance(code, int) else EXIT_DONE
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("gpu-calibrate: interrupted", err=True)
        return EXIT_INTERRUPTED
    except InputError as error:
        for problem in error.problems:
            click.echo(f"gpu-calibrate: {problem}" if problem.file is None else str(problem), err=True)
        return EXIT_BAD_INPUT
    except SimrunError as error:
        click.echo(f"gpu-calibrate: {error}", err=True)
        return EXIT_FAILED
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            click.echo(f"gpu-calibrate: {OutputError('its output', error)}", err=True)
            return EXIT_FAILED
        first = next(iter(str(error).splitlines()), "")
        click.echo(
            f"gpu-calibrate: internal error, a bug: {type(error).__name__}: {first} "
            f"(run with {TRACEBACK_VARIABLE}=1 for the traceback)",
            err=True,
        )
        return EXIT_FAILED


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``gpu-calibrate``. Always ends with SystemExit."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.exit(_guarded(lambda: _command(arguments)))


def _command(arguments: list[str]) -> Any:
    if sys.stdout is None:
        raise OutputError("standard output", OSError("it is closed"))
    return cli.main(arguments, prog_name="gpu-calibrate", standalone_mode=False)


if __name__ == "__main__":
    main()
