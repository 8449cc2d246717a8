"""``simrun``: the command line. Results go to standard output, everything else to standard error.

Imports of anything heavy are inside the commands, so that ``simrun --help`` answers at once.
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from sim.errors import InputError, OutputError, Problem, SimrunError
from sim.explore.fit_command import fit_command
from sim.explore.memory_command import memory_command
from sim.explore.models_command import models_command
from sim.live.commands import COMMANDS
from sim.outputs import decisions_file, file_problems, folder_problems, standard_output
from sim.version import __version__

if TYPE_CHECKING:
    from sim.results.results import Results
    from sim.scenario.loader import LoadedScenario
    from sim.uncertainty import SeedRuns

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_SLO_MISSED, EXIT_INTERRUPTED = 0, 1, 2, 3, 130
EXIT_NO_READER = 141
"""As of a program that SIGPIPE ends: the reader of its output (``| head -1``) has gone. Nothing is said about it."""
TRACEBACK_VARIABLE = "SIMRUN_TRACEBACK"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk answers, for the writes that ``sim.outputs`` does not watch (``--help``)."""
THREADS_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
ALLOCATIONS_PER_COLLECTION = 20_000
SHORT_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 80}


class ReaderGone(Exception):
    """Standard output is a pipe that is read no longer; click would make exit code 1 of its BrokenPipeError."""


class ScenarioGroup(click.Group):
    """A group whose first argument may be a scenario: ``simrun x.yaml`` is ``simrun run x.yaml``."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the arguments; ``--help`` and ``--version`` print while that is done."""
        try:
            return super().make_context(*args, **extra)
        except BrokenPipeError as error:
            raise ReaderGone from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGone from error

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``run`` in front of what is neither a command nor an option of the group."""
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help", "--version"):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Both forms."""
        formatter.write_usage("simrun", "SCENARIO.yaml [OPTIONS]")
        formatter.write_usage("simrun", "COMMAND", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options of a run, since that is what most come for, then the other commands."""
        run_command = self.commands["run"]
        with click.Context(run_command, info_name="run") as run_context:
            options = [each for each in run_command.params if isinstance(each, click.Option)]
            records = [record for each in options if (record := each.get_help_record(run_context))]
        with formatter.section("Options"):
            formatter.write_dl([*records, ("--version", "Show the version and exit.")])
        rows = [(name, each.get_short_help_str(60)) for name, each in self.commands.items() if not each.hidden]
        with formatter.section("Other commands"):
            formatter.write_dl([row for row in rows if row[0] != "run"])
        with formatter.section("Exit codes"):
            formatter.write_text("0 done; 1 the simulation failed; 2 bad input; 3 SLO missed under --check-slo")


@click.group(cls=ScenarioGroup, context_settings=SHORT_HELP)
@click.version_option(__version__, "--version", message="simrun %(version)s")
def cli() -> None:
    """Simulate LLM serving, step for step as vLLM's V1 scheduler does it."""


@cli.command("run", context_settings=SHORT_HELP, options_metavar="[OPTIONS]")
@click.argument("scenario", metavar="SCENARIO.yaml")
@click.option("--out", metavar="DIR", help="Write summary, tables, report and trace to this folder.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a key; may be repeated.")
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Take this seed instead of the scenario's.")
@click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="Run N seeds; every number gets an interval.")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="With --seeds: runs at a time; else one per CPU.")
@click.option("--json", "as_json", is_flag=True, help="Print summary.json instead of tables.")
@click.option("--check-slo", is_flag=True, help="Exit with 3 if the SLO is missed, or overloaded.")
@click.option("--decisions", metavar="FILE.jsonl", help="Write one line per scheduler step to this file.")
def run_command(
    scenario: str,
    out: str | None,
    overrides: tuple[str, ...],
    seed: int | None,
    seeds: int | None,
    jobs: int | None,
    as_json: bool,
    check_slo: bool,
    decisions: str | None,
) -> int:
    """Simulate a scenario and print what it found."""
    from sim.run import load

    problems = [*_seeds_problems(seeds, jobs, decisions), *folder_problems(out), *file_problems(decisions)]
    try:
        loaded = load(scenario, overrides, seed)
    except InputError as error:
        raise InputError([*error.problems, *problems]) from None
    if problems:
        raise InputError(problems)
    many = None if seeds is None else _run_seeds(loaded, seeds, jobs)
    results = _run_one(loaded, decisions) if many is None else many.results
    written = [] if out is None else (many or results).write(out)
    with standard_output():
        if as_json:
            click.echo(results.summary_json, nl=False)
        else:
            from sim.results.terminal import print_summary

            print_summary(results.summary, written)
    if out is not None and loaded.scenario.outputs.trace:
        _tell_cut(results)
    if not check_slo:
        return EXIT_DONE
    if many is not None and many.slo_met is not None:
        click.echo(
            f"simrun: SLO met in {sum(many.slo_met)} of {len(many.slo_met)} seeds; exit code by the first", err=True
        )
    return _slo_verdict(results)


def _tell_cut(results: Results) -> None:
    from sim.results.timeline import left_out

    cut = left_out(results.record)
    if cut is not None:
        click.echo(f"simrun: note: {cut}", err=True)


def _seeds_problems(seeds: int | None, jobs: int | None, decisions: str | None) -> list[Problem]:
    """Options that do not go together."""
    if seeds is None:
        return [] if jobs is None else [Problem("--jobs: it says how many of --seeds run at a time; give --seeds too")]
    if decisions is None:
        return []
    return [Problem("--decisions: it is about one run; leave out --seeds, and choose the run with --seed")]


def _run_one(loaded: LoadedScenario, decisions: str | None) -> Results:
    from sim.progress import ProgressBar
    from sim.run import run

    with decisions_file(decisions) as stream, ProgressBar() as bar:
        return run(loaded, decisions=stream, progress=bar if bar.wanted else None)


def _run_seeds(loaded: LoadedScenario, seeds: int, jobs: int | None) -> SeedRuns:
    from sim.progress import RunsBar
    from sim.uncertainty import simulate_seeds

    with RunsBar() as bar:
        return simulate_seeds(loaded, seeds=seeds, jobs=jobs, progress=bar if bar.wanted else None)


def _slo_verdict(results: Results) -> int:
    if results.summary["slo"] is None:
        click.echo(
            "simrun: --check-slo: the scenario gives no `slo`, so there is nothing to check but overload and requests "
            "that were not served",
            err=True,
        )
    if results.summary["load"]["step_times"] == "estimated":
        off = results.summary["error"]["value"]
        click.echo(
            f"simrun: note: the verdict goes by estimated step times, off by about {off:.0%}; a measured profile or "
            "`simrun fit` makes it firmer",
            err=True,
        )
    misses = results.misses
    for each in misses:
        click.echo(f"simrun: SLO missed: {each}", err=True)
    return EXIT_SLO_MISSED if misses else EXIT_DONE


@cli.command("schema", context_settings=SHORT_HELP)
@standard_output()
def schema_command() -> int:
    """Print the scenario format as JSON Schema (draft-07)."""
    import json

    from sim.scenario.json_schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
    return EXIT_DONE


@cli.command("policies", context_settings=SHORT_HELP)
@standard_output()
def policies_command() -> int:
    """List scheduling policies, predictors and routers."""
    from policies import registry

    click.echo("Policies (engine.policy)")
    for row in registry.describe_policies():
        marks = [f"vLLM's own `{row.stock_mode}`"] if row.stock_mode else []
        marks += ["asks a predictor"] if row.uses_predictor else []
        marks += [f"simulator only: {row.not_live_because}"] if row.not_live_because else []
        _describe(row, marks)
    click.echo("Predictors of output length (engine.predictor)")
    for row in registry.describe_predictors():
        _describe(row, [])
    click.echo("Routers (cluster.router)")
    for row in registry.describe_routers():
        _describe(row, [])
    click.echo("With parameters: {name: hybrid, latency_weight: 0.5}. Your own: module:Class.")
    return EXIT_DONE


def _describe(row: Any, marks: Sequence[str]) -> None:
    import textwrap

    def wrapped(text: str, first: str, rest: str) -> None:
        click.echo("\n".join(textwrap.wrap(text, 80, initial_indent=first, subsequent_indent=rest)))

    from policies.parameters import REQUIRED

    wrapped(row.summary or "-", f"  {row.name:<16} ", " " * 19)
    for mark in marks:
        wrapped(mark, " " * 19, " " * 19)
    for parameter in row.parameters:
        default = "required" if parameter.default is REQUIRED else f"default {parameter.default}"
        help_text = f": {parameter.help}" if parameter.help else ""
        wrapped(f"{parameter.name} ({parameter.type_text}, {default}){help_text}", " " * 19, " " * 21)
    click.echo()


@cli.command("gpus", context_settings=SHORT_HELP)
@standard_output()
def gpus_command() -> int:
    """List GPU presets."""
    from sim.latency.gpus import GIB, best_known_first, standing

    click.echo(f"{'gpu':<15}{'memory':>10}{'bandwidth':>12}{'16-bit*':>9}{'FP8*':>7}{'price**':>11}  step times")
    for spec in best_known_first():
        fp8 = "-" if spec.fp8_flops is None else f"{spec.fp8_flops / 1e12:,.0f}"
        click.echo(
            f"{spec.name:<15}{spec.memory_bytes / GIB:>6.1f} GiB{spec.memory_bandwidth / 1e9:>7,.0f} GB/s"
            f"{spec.fp16_flops / 1e12:>9,.0f}{fp8:>7}{spec.usd_per_hour:>7.2f} $/h  {standing(spec)}"
        )
    click.echo("* dense TFLOP/s. ** a round example of on-demand list prices, not a quote")
    return EXIT_DONE


for command in (*COMMANDS, fit_command, memory_command, models_command):
    cli.add_command(command)


def _guarded(action: Callable[[], Any]) -> int:
    """Run ``action`` and turn whatever goes wrong into one clear line and an exit code."""
    try:
        code = action()
        return code if isinstance(code, int) else EXIT_DONE
    except ReaderGone:
        # What is still buffered would be tried, and complained about, once more when Python ends.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        return EXIT_NO_READER
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        said = str(error.__cause__ or error)  # click puts its Abort around a KeyboardInterrupt
        click.echo("simrun: interrupted" + (f": {said}" if said else ""), err=True)
        return EXIT_INTERRUPTED
    except InputError as error:
        for problem in error.problems:
            click.echo(f"simrun: {problem}" if problem.file is None else str(problem), err=True)
        return EXIT_BAD_INPUT
    except OutputError as error:
        click.echo(f"simrun: {error}", err=True)
        return EXIT_FAILED
    except SimrunError as error:
        click.echo(f"simrun: the simulation failed: {error}", err=True)
        return EXIT_FAILED
    except MemoryError:
        click.echo("simrun: out of memory; try fewer requests", err=True)
        return EXIT_FAILED
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            click.echo(f"simrun: {OutputError('its output', error)}", err=True)
            return EXIT_FAILED
        first = next(iter(str(error).splitlines()), "")
        foreign = _foreign_frame(error)
        whose = "internal error, a bug in simrun" if foreign is None else f"error in {foreign}"
        click.echo(
            f"simrun: {whose}: {type(error).__name__}: {first} (run with {TRACEBACK_VARIABLE}=1 for the traceback)",
            err=True,
        )
        return EXIT_FAILED


def _foreign_frame(error: BaseException) -> str | None:
    """``file:line`` of the user's own code (a policy, predictor or router of theirs) that an error passed through."""
    import sysconfig
    import traceback
    from pathlib import Path

    ours = {str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "policies")}
    installed = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    while error.__cause__ is not None:
        error = error.__cause__  # SimPy raises again what a process raised
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not any(frame.filename.startswith(folder) for folder in ours | installed):
            return f"{frame.filename}:{frame.lineno}" if Path(frame.filename).is_file() else None
    return None


def _lighten() -> None:
    """Leave out work of the process that no run needs."""
    if not any(name in os.environ for name in THREADS_VARIABLES):
        # Starting a thread for each core takes longer than importing numpy, and nothing here multiplies matrices.
        os.environ[THREADS_VARIABLES[0]] = "1"
    # Importing makes many objects and no garbage; looking for cycles every 700 of them takes 30 ms of a start.
    gc.set_threshold(ALLOCATIONS_PER_COLLECTION)
    # The process ends: nothing is gained from looking through all that is left for cycles.
    atexit.register(gc.freeze)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``simrun``. Always ends with SystemExit."""
    _lighten()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.exit(_guarded(lambda: cli.main(arguments, prog_name="simrun", standalone_mode=False)))


if __name__ == "__main__":
    main()
