"""``simrun fit``: a fit of step costs and host times to measured runs."""

from __future__ import annotations

import json

import click

from sim.errors import InputError
from sim.outputs import standard_output

EXIT_DONE = 0


@click.command(
    "fit",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    options_metavar="--scenario SCENARIO.yaml --out FIT.yaml [OPTIONS]",
)
@click.argument("measured", metavar="MEASURED...", nargs=-1, required=True)
@click.option(
    "--scenario",
    "scenarios",
    metavar="SCENARIO.yaml",
    multiple=True,
    required=True,
    help="What was measured; one for all runs, or one for each in order.",
)
@click.option("--out", metavar="FIT.yaml", help="Write what `latency: {fit: FIT.yaml}` takes to this file.")
@click.option("--force", is_flag=True, help="Overwrite --out if it exists.")
@click.option(
    "--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a key of every scenario; may be repeated."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fit_command(
    measured: tuple[str, ...],
    scenarios: tuple[str, ...],
    out: str | None,
    force: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> int:
    """Fit step costs, host and client times to measured runs.

    MEASURED are records of `simrun observe` or results of `vllm bench serve --save-result`, SGLang's bench_serving,
    guidellm, inference-perf or AIPerf. Without requests in the file (--save-detailed), the workload is the scenario's.
    """
    from sim.explore.fit import fit
    from sim.explore.fit_report import fit_text
    from sim.live.observation_file import overwrite_problems
    from sim.progress import RunsBar

    problems = [] if out is None else overwrite_problems(out, force)
    if problems:
        raise InputError(problems)
    with RunsBar() as bar:
        found = fit(measured, scenarios, overrides=overrides, progress=bar if bar.wanted else None)
    if out is not None:
        found.write(out)
    with standard_output():
        if as_json:
            click.echo(json.dumps(found.document(), indent=2, allow_nan=False))
        else:
            click.echo(fit_text(found, out), nl=False)
    return EXIT_DONE
