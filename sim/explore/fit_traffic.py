"""Whether a scenario's traffic is what was measured, where a file has figures alone; and whether a fit comes near it.

A fit to other traffic is a wrong fit that looks like a right one: a higher rate becomes slower matrices. So what
contradicts the scenario is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.errors import Problem
from sim.explore.fit_case import Case
from sim.latency.fitted import Fitted
from sim.workload.table import NO_PARENT

COUNT_OFF, LENGTH_OFF, TIME_OFF = 0.1, 0.1, 0.15
"""By how much of the scenario's own the number of requests, their mean length and the duration may be off."""
CHANCE = 4.0
"""Standard errors that chance explains beside that."""
LATENCY_OFF = 30.0
"""Per cent by which the mean latencies may be off after the fit, in the mean over the runs."""
REMEDY = (
    "state what was sent (workload.requests, arrival, input_tokens, output_tokens), or give a file with requests "
    "(`simrun observe`; `vllm bench serve --save-detailed`), which brings its own"
)
MEANS = tuple(f"{name}_{metric}_ms" for metric in ("ttft", "tpot", "itl", "e2el") for name in ("mean", "median", "p50"))


def traffic_problems(cases: Sequence[Case]) -> list[Problem]:
    """What shows before anything is simulated: numbers, lengths, and arrivals that take longer than the whole run."""
    return [problem for case in cases if case.run.measured is None for problem in _of_case(case)]


def _of_case(case: Case) -> list[Problem]:
    counts, table = case.run.counts, case.workload
    found = []
    sent = counts.get("completed", 0) + counts.get("failed", 0)
    if sent and abs(sent / len(table) - 1.0) > COUNT_OFF:
        found.append(f"{sent:,} requests were measured, and the workload has {len(table):,}")
    outputs = np.minimum(table.output_tokens, table.max_tokens)
    for key, lengths in (("input", table.input_tokens), ("output", outputs)):
        total, done = counts.get(f"total_{key}_tokens", 0), counts.get("completed", 0)
        if not (total and done):
            continue
        mean = float(lengths.mean())
        chance = CHANCE * float(lengths.std()) / len(table) ** 0.5 / mean
        if abs(total / done / mean - 1.0) > LENGTH_OFF + chance:
            found.append(f"{total / done:,.0f} {key} tokens a request were measured, and the workload has {mean:,.0f}")
    measured_s, arrivals_s = _duration_s(case), _arrivals_s(case)
    if (
        measured_s
        and arrivals_s
        and arrivals_s / measured_s > 1.0 + (_tolerance(case) if _is_random(case) else TIME_OFF)
    ):
        found.append(f"the run took {measured_s:,.0f} s, and arrivals of the workload alone take {arrivals_s:,.0f} s")
    return [_problem(case, each) for each in found]


def misfit_problems(cases: Sequence[Case], fitted: Fitted, errors: Sequence[dict[str, float]]) -> list[Problem]:
    """What shows with the fitted parameters: another duration, or latencies that no parameters come near."""
    found = []
    for case, off in zip(cases, errors, strict=True):
        measured_s = _duration_s(case)
        predicted = case.predict(fitted)
        # Of requests that were sent when the file says, a run cannot last otherwise by much but in overload.
        if measured_s and case.run.measured is None:
            ratio = predicted["duration"] / measured_s
            if not 1.0 / (1.0 + _tolerance(case)) <= ratio <= 1.0 + _tolerance(case):
                told = f"the run took {measured_s:,.0f} s, and {predicted['duration']:,.0f} s with the best parameters"
                found.append(_problem(case, told))
                continue
        means = [abs(off[key]) for key in MEANS if key in off]
        if means and sum(means) / len(means) > LATENCY_OFF:
            found.append(
                Problem(
                    f"no parameters within their bounds come near this run: its mean latencies are off by "
                    f"{sum(means) / len(means):.0f} % in the mean under {case.loaded.scenario.name!r}. Look at its "
                    "engine (model, GPU, max_num_seqs, prefixes that prompts share) and traffic, and at "
                    "`latency.kind`, or leave this run out",
                    case.run.file,
                )
            )
    return found


def _problem(case: Case, told: str) -> Problem:
    return Problem(f"{told} in {case.loaded.scenario.name!r}: other traffic than was measured; {REMEDY}", case.run.file)


def _duration_s(case: Case) -> float | None:
    figures, counts = case.run.figures, case.run.counts
    if "duration" in figures:
        return figures["duration"]
    if "request_throughput" in figures and counts.get("completed"):
        return counts["completed"] / figures["request_throughput"]
    return None


def _arrivals_s(case: Case) -> float | None:
    """From the first arrival to the last, where none waits for an end."""
    table = case.workload
    if table.closed_loop_concurrency is not None or bool((table.parent != NO_PARENT).any()):
        return None
    return int(table.arrival_ns.max() - table.arrival_ns.min()) / 1e9


def _is_random(case: Case) -> bool:
    """Whether the seed has a say in when requests arrive: not where all come at equal gaps."""
    workload = case.loaded.scenario.workload
    stated = [each.arrival for each in (workload, *(workload.classes or ())) if each.arrival is not None]
    return not stated or any(arrival.process != "constant" for arrival in stated)


def _tolerance(case: Case) -> float:
    """Sums of random gaps and lengths differ with each seed: by a tenth for 100 requests, of which four are allowed
    beside ``TIME_OFF``: 0.55."""
    return TIME_OFF + CHANCE / float(len(case.workload) ** 0.5)
