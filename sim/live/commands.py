"""``simrun vllm-args``, ``import-args``, ``observe`` and ``validate``: what has to do with a running server."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from sim.errors import InputError, Problem
from sim.outputs import folder_problems, standard_output

if TYPE_CHECKING:
    import signal

    from sim.live.client import Target
    from sim.live.measured import Measured
    from sim.live.observe import Outcome
    from sim.scenario.loader import LoadedScenario
    from sim.workload.table import RequestTable

EXIT_DONE, EXIT_FAILED = 0, 1
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 80}
SALT_BYTES = 4
LATE_MS = 10.0
"""A client that is later than this at its 99th percentile is part of what it measures."""
TOKEN_IDS = (1000, 30000)
"""Ids that prompts are drawn from: clear of the special ones that vocabularies begin and end with."""

set_option = click.option(
    "--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a key of the scenario."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command("vllm-args", context_settings=SETTINGS)
@click.argument("scenario", metavar="SCENARIO.yaml")
@set_option
@click.option("--model", metavar="NAME", help="Serve this repository or folder instead of the scenario's model.")
@click.option("--module", "as_module", is_flag=True, help="Start it by `python -m`, as vLLM's CPU build needs it.")
@json_option
def vllm_args_command(
    scenario: str, overrides: tuple[str, ...], model: str | None, as_module: bool, as_json: bool
) -> int:
    """Print the `vllm serve` command line of a scenario."""
    from sim.checks.all_checks import check_all
    from sim.live.vllm_args import serve_command
    from sim.run import load

    if model is not None and not model.strip():
        raise InputError("--model: give the name of a repository or a folder")
    loaded = load(scenario, overrides)
    check_all(loaded)
    command = serve_command(loaded, model, as_module=as_module)
    with standard_output():
        click.echo(command.to_json() if as_json else command.shell(), nl=False)
    return EXIT_DONE


@click.command("import-args", context_settings=SETTINGS)
@click.argument("command", metavar="'vllm serve ...'")
@click.option("--gpu", metavar="NAME", required=True, help="The GPU it runs on: no command line names it.")
@click.option("--model", metavar="NAME", help="A preset or a config.json instead of the command's model.")
@json_option
def import_args_command(command: str, gpu: str, model: str | None, as_json: bool) -> int:
    """Print the scenario of a command line that starts vLLM's server.

    `vllm serve`, `python -m vllm.entrypoints.openai.api_server` or `docker run
    ... vllm/vllm-openai`. What it leaves out of the command is in the scenario's first lines, and said.
    """
    import json

    from sim.checks.all_checks import check_all
    from sim.live.import_args import import_command
    from sim.run import load
    from sim.scenario.resolved import block_yaml

    found = import_command(command, gpu, model)
    document = found.document()
    loaded = load(document)
    check_all(loaded)
    with standard_output():
        if as_json:
            told = {"scenario": document, "left_out": found.left_out, "no_matter": found.no_matter}
            click.echo(json.dumps(told, indent=2))
        else:
            comments = "".join(f"# {line}\n" for line in found.comments(loaded.scenario.engine))
            click.echo(comments + block_yaml(document), nl=False)
    for each in found.left_out:
        click.echo(f"simrun: note: left out: {each}", err=True)
    return EXIT_DONE


@dataclass(frozen=True, slots=True)
class ObserveOptions:
    """What ``simrun observe`` was asked for, beside the workload."""

    url: str
    out: str
    force: bool
    model: str | None
    endpoint: str
    token_ids: tuple[int, int]
    timeout_s: float
    salt: str
    send_priority: bool
    extensions: bool


@click.command("observe", context_settings=SETTINGS, options_metavar="[OPTIONS]")
@click.argument("scenario", metavar="[SCENARIO.yaml]", required=False)
@click.option("--url", metavar="URL", required=True, help="Where the server is: http://127.0.0.1:8000")
@click.option("--out", metavar="FILE.jsonl", required=True, help="Write a line per request to this file.")
@click.option("--force", is_flag=True, help="Overwrite --out if it exists.")
@set_option
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Take this seed instead of the scenario's.")
@click.option("--trace", metavar="FILE", help="Replay this trace instead of a scenario.")
@click.option("--format", "trace_format", metavar="NAME", help="The trace's format; without it, generic.")
@click.option("--rate-scale", type=float, metavar="X", help="Replay the trace X times as fast.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N requests.")
@click.option("--model", metavar="NAME", help="The name to ask for; without it, the first that the server lists.")
@click.option("--endpoint", type=click.Choice(["completions", "chat"]), default="completions", show_default=True)
@click.option("--token-ids", metavar="LOW:HIGH", help="Range that prompts draw token ids from (high excluded).")
@click.option("--timeout", "timeout_s", type=float, default=600.0, metavar="S", show_default=True, help="Per request.")
@click.option("--priority/--no-priority", "priority", default=None, help="Send priorities; by default, if they matter.")
@click.option("--openai-only", is_flag=True, help="Send nothing that only vLLM knows.")
@click.option("--salt", metavar="TEXT", help="Repeat the prompts of the run with this salt; without it, new ones.")
@json_option
def observe_command(
    scenario: str | None,
    url: str,
    out: str,
    force: bool,
    overrides: tuple[str, ...],
    seed: int | None,
    trace: str | None,
    trace_format: str | None,
    rate_scale: float | None,
    limit: int | None,
    model: str | None,
    endpoint: str,
    token_ids: str | None,
    timeout_s: float,
    priority: bool | None,
    openai_only: bool,
    salt: str | None,
    as_json: bool,
) -> int:
    """Replay a workload against an OpenAI-compatible server and record it.

    Open loop: every request is sent at its instant, whatever became of those before it.
    """
    import asyncio

    from sim.live.client import base_url, check_library
    from sim.live.observation_file import overwrite_problems

    problems = overwrite_problems(out, force)
    if not timeout_s > 0:
        problems.append(Problem(f"--timeout {timeout_s:g}: give the seconds that a request may take, more than 0"))
    if (scenario is None) == (trace is None):
        problems.append(Problem("give a scenario, or --trace FILE: one of the two"))
    if trace is not None and (overrides or seed is not None):
        problems.append(Problem("--set and --seed change a scenario; with --trace there is none"))
    if trace is None and (trace_format is not None or rate_scale is not None):
        problems.append(Problem("--format and --rate-scale are about a trace; give --trace FILE, or leave them out"))
    for attempt in (lambda: base_url(url), check_library):
        try:
            attempt()
        except InputError as error:
            problems += error.problems
    loaded, table = None, None
    try:
        given_ids = None if token_ids is None else _token_ids(token_ids)
        if not any("one of the two" in each.message for each in problems):
            loaded, table = _workload(
                scenario,
                overrides,
                seed,
                trace,
                trace_format or "generic",
                1.0 if rate_scale is None else rate_scale,
                limit,
            )
    except InputError as error:
        problems += error.problems
    if problems or table is None:
        raise InputError(problems)
    options = ObserveOptions(
        url=base_url(url),
        out=out,
        force=force,
        model=model,
        endpoint=endpoint,
        token_ids=given_ids or _default_ids(loaded),
        timeout_s=timeout_s,
        salt=salt or secrets.token_hex(SALT_BYTES),
        send_priority=_priorities_matter(loaded) if priority is None else priority,
        extensions=not openai_only,
    )
    name = loaded.scenario.name if loaded is not None else str(trace)
    return asyncio.run(_observe(name, table, options, as_json))


def _workload(
    scenario: str | None,
    overrides: tuple[str, ...],
    seed: int | None,
    trace: str | None,
    trace_format: str,
    rate_scale: float,
    limit: int | None,
) -> tuple[LoadedScenario | None, RequestTable]:
    """The scenario, if there is one, and the requests. Raises InputError."""
    from pathlib import Path

    from sim.checks.all_checks import check_all
    from sim.cluster.deployment import served_image
    from sim.run import load
    from sim.workload.build_table import build_workload

    if scenario is not None:
        if limit is not None:
            overrides = (*overrides, f"workload.requests={limit}")
        loaded = load(scenario, overrides, seed)
        check_all(loaded)
        told = loaded.scenario
        return loaded, build_workload(
            told.workload,
            told.seed,
            loaded.base_dir,
            told.engine.max_model_len,
            isolates_tenants=told.engine.cache_isolation == "tenant",
            serves_loras=told.engine.enable_lora,
            image=served_image(told.engine, loaded.base_dir),
        )
    section = {"path": trace, "format": trace_format, "rate_scale": rate_scale, "limit": limit}
    # The rest of a scenario, so that the options are checked as its keys are.
    data = {"name": "trace", "workload": {"trace": section}, "engine": {"model": "llama-2-7b", "gpu": "h100-sxm"}}
    try:
        loaded = load(data)
        return None, build_workload(loaded.scenario.workload, 0, Path(), None)
    except InputError as error:
        raise InputError([replace(each, message=_as_options(each.message)) for each in error.problems]) from None


def _as_options(message: str) -> str:
    """Put the options of the command in place of a scenario's keys in ``message``."""
    for key, option in (("path", "--trace"), ("format", "--format"), ("rate_scale", "--rate-scale")):
        message = message.replace(f"`workload.trace.{key}`", option).replace(f"workload.trace.{key}", option)
    return message


def _token_ids(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    if not (low.isdecimal() and high.isdecimal() and int(low) + 2 <= int(high) <= 1 << 31):
        raise InputError(
            f"--token-ids {text!r}: expected LOW:HIGH, at least two ids and none beyond 2**31, such as 1000:30000"
        )
    return int(low), int(high)


def _default_ids(loaded: LoadedScenario | None) -> tuple[int, int]:
    """``TOKEN_IDS``, or most of a vocabulary that has not so many."""
    from sim.latency.models import load_model

    if loaded is None:
        return TOKEN_IDS
    size = load_model(loaded.scenario.engine.model, loaded.base_dir).vocab_size
    return TOKEN_IDS if size >= TOKEN_IDS[1] else (size // 8, size)


def _priorities_matter(loaded: LoadedScenario | None) -> bool:
    """vLLM refuses a priority other than 0 unless it schedules by them; the simulator ignores it."""
    if loaded is None:
        return True
    policy = loaded.scenario.engine.policy
    return (policy if isinstance(policy, str) else policy.name) != "fcfs"


async def _observe(name: str, table: RequestTable, options: ObserveOptions, as_json: bool) -> int:
    from sim.live.client import Target, ask_server, authorization, open_session, without_password
    from sim.live.observation_file import RecordFile
    from sim.live.observe import fail_all, lateness, num_unsent, replay
    from sim.live.prompts import PromptMaker
    from sim.progress import ProgressBar
    from sim.version import __version__

    for note in [*table.notes, *_replay_notes(table)]:
        click.echo(f"simrun: note: {note}", err=True)
    headers = authorization()
    async with open_session() as session:
        server = await ask_server(session, options.url, headers)
        objection, model = server.objection, options.model
        if model is None and objection is None:
            if not server.models:
                status = f" (HTTP {server.models_status})" if server.models_status != 200 else ""
                raise InputError(
                    f"{without_password(options.url)} lists no models under /v1/models{status}; "
                    "name the one to ask for by --model"
                )
            model = server.models[0]
        elif server.models and model not in server.models:
            served = ", ".join(server.models[:5])
            objection = f"the server does not serve the model {model!r}; it serves {served}"
        target = Target(
            url=options.url,
            model=model or "",
            prompts=PromptMaker(options.salt, *options.token_ids),
            endpoint="chat" if options.endpoint == "chat" else "completions",
            timeout_s=options.timeout_s,
            extensions=options.extensions,
            send_priority=options.send_priority,
            headers=headers,
        )
        with RecordFile(options.out, options.force) as record:
            record.begin(_about(name, table, target, server.version, __version__))
            if objection is not None:
                outcome = fail_all(table, record, objection)
            else:
                with ProgressBar(words=("observing", "passed")) as bar:
                    outcome = await replay(session, table, target, record, bar if bar.wanted else None)
            record.end({"not_sent": num_unsent(table, outcome), "late": lateness(outcome)})
    return _report(table, outcome, options, as_json)


def _replay_notes(table: RequestTable) -> list[str]:
    notes = []
    if (longer := int((table.max_tokens > table.output_tokens).sum())) > 0:
        notes.append(
            f"max_tokens is sent as the true output length ({longer:,} requests ask for more in the simulation): "
            "nothing else makes a server stop there"
        )
    return notes


def _about(name: str, table: RequestTable, target: Target, server_version: str | None, version: str) -> dict[str, Any]:
    import time

    from sim.live.client import without_password

    return {
        "simrun": version,
        "workload": name,
        "requests": len(table),
        "url": without_password(target.url),
        "model": target.model,
        "endpoint": target.endpoint,
        "server_version": server_version,
        "salt": target.prompts.salt,
        "token_ids": [target.prompts.low, target.prompts.high],
        "started_unix_s": round(time.time(), 3),
    }


def _report(table: RequestTable, outcome: Outcome, options: ObserveOptions, as_json: bool) -> int:
    """Print what was seen; the exit code."""
    import json

    from sim.live.comparison_tables import observed_text, reason_lines
    from sim.live.measured import Measured, figures
    from sim.live.observe import lateness, num_unsent

    measured = Measured("simrun observe", outcome.observations)
    found, late, unsent = figures(measured), lateness(outcome), num_unsent(table, outcome)
    planned = len(outcome.observations) + unsent
    with standard_output():
        if as_json:
            document = {**found, "not_sent": unsent, "late": late, "record": options.out}
            click.echo(json.dumps(document, indent=2))
        else:
            click.echo(observed_text(found, late, planned, options.out), nl=False)
    for part, what in (("sending", "sent requests"), ("event_loop", "looked at answers")):
        p99 = late[part]["p99_ms"]
        if p99 is not None and p99 > LATE_MS:
            click.echo(
                f"simrun: warning: this client {what} {p99:.0f} ms late at the p99: it is a bottleneck, and the times "
                "are its own as well; run it on another machine, or at a lower rate",
                err=True,
            )
    if (other := _other_lengths(measured)) is not None:
        click.echo(f"simrun: warning: {other}", err=True)
    unfinished = planned - found["completed"]
    if unfinished:
        never = f", {unsent:,} of them never sent" if unsent else ""
        click.echo(f"simrun: {unfinished:,} of {planned:,} requests did not complete{never}", err=True)
        for line in reason_lines(outcome.reasons):
            click.echo(f"simrun:   {line}", err=True)
    if outcome.interrupted is not None:
        click.echo(f"simrun: interrupted; what was seen is in {options.out}", err=True)
        return _interrupted(outcome.interrupted)
    return EXIT_FAILED if unfinished else EXIT_DONE


def _other_lengths(measured: Measured) -> str | None:
    """What to say where answers are not as long as the workload's."""
    done = measured.completed
    other = sum(each.output_tokens != each.max_tokens for each in done)
    if not other:
        return None
    got, asked = sum(each.output_tokens for each in done), sum(each.max_tokens for each in done)
    return (
        f"{other:,} of {len(done):,} answers are not as long as the workload's ({got:,} tokens in all, not {asked:,}): "
        "the server stops by itself, and this is other traffic than the scenario's"
    )


def _interrupted(received: signal.Signals) -> int:
    """The shell's convention."""
    return 128 + int(received)


@click.command("validate", context_settings=SETTINGS, options_metavar="--scenario SCENARIO.yaml [OPTIONS]")
@click.argument("measured", metavar="MEASURED")
@click.option(
    "--scenario", metavar="SCENARIO.yaml", required=True, help="Engine, cluster and latency to simulate with."
)
@set_option
@click.option("--out", metavar="DIR", help="Write validation.json and requests.csv to this folder.")
@json_option
def validate_command(measured: str, scenario: str, overrides: tuple[str, ...], out: str | None, as_json: bool) -> int:
    """Simulate the requests of a measured run; print predicted against measured.

    MEASURED is a record of `simrun observe`, a result of `vllm bench serve --save-result --save-detailed`, or what
    SGLang's bench_serving, guidellm, inference-perf or AIPerf wrote of each request (docs/traces.md).
    """
    from sim.live.comparison_tables import validation_text
    from sim.live.measured import read_measured
    from sim.live.validate import validate
    from sim.progress import ProgressBar
    from sim.run import load

    problems = folder_problems(out)
    loaded, found = None, None
    try:
        loaded = load(scenario, overrides)
    except InputError as error:
        problems += error.problems
    try:
        found = read_measured(measured)
    except InputError as error:
        problems += error.problems
    if problems or loaded is None or found is None:
        raise InputError(problems)
    with ProgressBar() as bar:
        validation = validate(loaded, found, measured, bar if bar.wanted else None)
    written = [] if out is None else validation.write(out)
    with standard_output():
        click.echo(validation.to_json() if as_json else validation_text(validation, written), nl=False)
    return EXIT_DONE


COMMANDS = (vllm_args_command, import_args_command, observe_command, validate_command)
