"""``docs/accuracy.md``: the page that a user reads in two minutes. The long tables are another page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.accuracy_experiment import Section, weights_of
from benchmarks.accuracy_fit import LITE_FITTED
from benchmarks.accuracy_front_text import INTRO, KINDS, LEFT_OUT, NOT_VALIDATED, ONE_RUN, OWN_FIT
from benchmarks.accuracy_operators import ProfileScore
from benchmarks.accuracy_peers import ELSEWHERE
from benchmarks.accuracy_runs import Outcome
from benchmarks.accuracy_scores import SATURATED, Score, scores
from benchmarks.accuracy_single import SINGLE
from benchmarks.accuracy_text import flow
from benchmarks.speed import markdown
from sim.latency.models import MODELS

COMMAND = "python -m benchmarks.accuracy --data DIR --page docs/accuracy.md"
FIGURES = {
    "TPOT": ("mean_tpot_ms", "mean_itl_ms"),
    "TTFT": ("mean_ttft_ms",),
    "E2E": ("mean_e2el_ms",),
    "TTFT p99": ("p99_ttft_ms",),
}
"""Column -> keys of ``summary.json``, the first that was measured."""
FORMATS = {"bfloat16": "BF16", "fp8": "FP8", "int4": "INT4", "int4_g32": "INT4", "mxfp4": "MXFP4"}


def percent(value: float) -> str:
    """A size without a sign, with one decimal."""
    return f"{100 * value:.1f} %"


def front_page(
    outcomes: Sequence[Outcome],
    operators: Sequence[ProfileScore],
    head: str,
    tables: str,
    sections: Sequence[Section] = (),
) -> str:
    """The whole of it. ``head`` says when and with what it was made, ``tables`` where the long tables are."""
    parts = ["# Accuracy", flow(INTRO), _made(head, tables)]
    found = kind_rows(outcomes)
    if len(found) > 1:
        parts.append(f"## What you serve, and how far off it is\n\n{flow(KINDS)}\n\n{markdown(found)}")
    if missed := missed_lines(scores(outcomes)):
        parts.append("## Where the bars are missed\n\n" + "\n".join(missed))
    parts.append(_not_validated(outcomes))
    parts += [f"## {each.title}\n\n{each.text}" for each in sections]
    if fits := _fit_section(scores(outcomes)):
        parts.append(fits)
    parts.append("## Other simulators\n\n" + _peers())
    parts.append(f"## More\n\n{_more(operators, tables)}")
    return "\n\n".join(parts) + "\n"


def _made(head: str, tables: str) -> str:
    text = f"""
        {head} This page and [the tables behind it]({tables}) are made by the command below; `DIR` holds the data files
        that the last section there names. `--check` exits with 1 where a bar is missed by more than its margin."""
    return f"{flow(text)}\n\n```bash\n{COMMAND}\n```"


# --- what you serve ------------------------------------------------------------------------------


def kind_rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """A header, and one row for each kind of model, format, GPU and load: median sizes of errors, validation only."""
    rows: list[tuple[str, ...]] = [("what you serve", "GPU", "vLLM", "runs", *FIGURES)]
    kinds: dict[tuple[bool, str, str, str], list[Outcome]] = {}
    for each in outcomes:
        experiment = each.experiment
        if experiment.is_training or each.failure or experiment.group in LEFT_OUT or experiment.fitted_to is not None:
            continue
        engine = experiment.scenario["engine"]
        is_moe = MODELS[engine["model"]].num_experts > 0
        kinds.setdefault((is_moe, engine["gpu"], weights_of(engine), experiment.group), []).append(each)
    for (is_moe, gpu, dtype, _), found in sorted(kinds.items(), key=lambda each: each[0][:3]):
        what = f"{'MoE' if is_moe else 'dense'}, {FORMATS[dtype]}: {_models(found)}; {_load(found)}"
        cells = [_median(found, keys) for keys in FIGURES.values()]
        rows.append((what, gpu, _versions(found), f"{len(found)}", *cells))
    return rows


def _median(found: Sequence[Outcome], keys: Sequence[str]) -> str:
    signed = [next((error for key in keys if (error := each.error(key)) is not None), None) for each in found]
    errors = [abs(error) for error in signed if error is not None]
    return percent(float(np.median(errors))) if errors else "not yet measured"


def _models(found: Sequence[Outcome]) -> str:
    sizes: dict[str, set[int]] = {}
    for each in found:
        engine = each.experiment.scenario["engine"]
        sizes.setdefault(engine["model"], set()).add(engine.get("tensor_parallel_size", 1))
    return ", ".join(f"{model} TP {'/'.join(map(str, sorted(tps)))}" for model, tps in sizes.items())


def _load(found: Sequence[Outcome]) -> str:
    told = {}
    for each in found:
        workload = each.experiment.scenario["workload"]
        if "trace" in workload:
            told["a trace of chats at 10/s"] = None
        elif workload["arrival"]["process"] == "closed_loop":
            told["fixed clients"] = None
        else:
            told["low rate, repeated prompts" if "prefix" in workload else "low rate, prompts that share nothing"] = (
                None
            )
    link = any("link_bandwidth_gb_s" in each.experiment.scenario["latency"] for each in found)
    return " or ".join(told) + (", link stated" if link else "")


def _versions(found: Sequence[Outcome]) -> str:
    versions = {each.experiment.version for each in found}
    known = sorted((each for each in versions if each), key=lambda each: [int(part) for part in each.split(".")])
    return ", ".join([*known, *(["not recorded"] if None in versions else [])])


def missed_lines(found: Sequence[Score]) -> list[str]:
    """One line for each set with a bar that it misses."""
    sets: dict[str, list[str]] = {}
    for each in found:
        if not each.met:
            aim = "" if each.bar.aim is None else f", aim {percent(each.bar.aim)}"
            how = "share" if each.bar.statistic == SATURATED else each.bar.statistic
            told = f"{each.bar.label} {percent(each.scored)} ({how}; bar {percent(each.bar.limit)}{aim})"
            sets.setdefault(each.bar.group, []).append(told)
    return [flow(f"- {group}: {', '.join(told)}", "  ") for group, told in sets.items()]


# --- what is not, and the rest ---------------------------------------------------------------------


def _not_validated(outcomes: Sequence[Outcome]) -> str:
    versions = _versions([each for each in outcomes if each.experiment.version])
    runs = {each.experiment.name: each for each in outcomes if each.experiment.group == SINGLE}
    told = {key: _signed(runs.get(name)) for key, name in ONE_RUN.items()}
    lines = [line.format(versions=versions or "none", **told) for line in NOT_VALIDATED]
    return "## What is not validated\n\n" + "\n".join(flow(f"- {line}", "  ") for line in lines)


def _signed(outcome: Outcome | None) -> str:
    """``TTFT +9 %, TPOT -16 %``."""
    if outcome is None or outcome.failure:
        return "not simulated here"
    errors = {label: outcome.error(FIGURES[label][0]) for label in ("TTFT", "TPOT")}
    return ", ".join(f"{label} {100 * error:+.0f} %" for label, error in errors.items() if error is not None)


def _fit_section(found: Sequence[Score]) -> str:
    fitted = {each.bar.label: each for each in found if each.bar.group == LITE_FITTED}
    if not fitted:
        return ""
    told = ", ".join(
        f"{label} {percent(each.median)}" for label, each in fitted.items() if each.bar.statistic != SATURATED
    )
    count = next(iter(fitted.values())).num_experiments
    text = OWN_FIT.format(count=count, errors=told)
    commands = "\n".join(
        (
            "simrun observe scenario.yaml --url http://127.0.0.1:8000 --out low.jsonl  # or: vllm bench serve",
            "simrun fit low.jsonl --scenario scenario.yaml --out FIT.yaml  # then latency: {fit: FIT.yaml}",
        )
    )
    return f"## Your own deployment\n\n```bash\n{commands}\n```\n\n{flow(text)}"


def _peers() -> str:
    rows = [("simulator", "what it publishes of itself"), *((each.name, each.what) for each in ELSEWHERE)]
    text = """
        On other sets than ours, but for LLMServingSim's, whose figures on our two runs stand in the tables. For the
        order of magnitude only; sources are in the tables."""
    return f"{flow(text)}\n\n{markdown(rows)}"


def _more(operators: Sequence[ProfileScore], tables: str) -> str:
    layers = [each.worst_layer_operator for each in operators if each.worst_layer_operator is not None]
    single = f"Single operators are within {percent(max(layers))} in the median. " if layers else ""
    text = f"""
        [Tables]({tables}): every run, what was assumed of clients and engines, what is off and why, single operators,
        what is in the files and not scored. {single}[uncertainty.md](uncertainty.md): how the error that a run states
        is put together. [fit.md](fit.md): fits. [memory.md](memory.md): KV cache sizes."""
    return flow(text)
