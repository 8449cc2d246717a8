"""Whole runs, fast and reference: the same decisions at the same instants, the same requests, the same summary.

``FAST_FORWARD_EXAMPLES`` sets the number of random scenarios of each family; the default is a short version. Each
family counts how often it came through each shortcut, and fails where that is too seldom.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import pytest
from engine_profiled import Deployments, kept_costs
from least_shortcuts import LEAST, LEAST_NOISE
from random_runs import FAMILIES, noises, some_acts
from shortcuts import Shortcuts

from sim.checks.all_checks import check_all
from sim.cluster.acts import Act
from sim.cluster.simulate import simulate_cluster
from sim.engine.fast import sums
from sim.errors import InputError, SimulationError
from sim.results.context import RunContext
from sim.results.summary import build_summary
from sim.run import load, run

SHORT = 60
EXAMPLES = int(os.environ.get("FAST_FORWARD_EXAMPLES", SHORT))
COSTS = kept_costs
DEPLOYMENTS = Deployments()


@dataclass
class Outcome:
    """What a run leaves behind."""

    lines: list[str]
    columns: dict[str, list[int]]
    summary: dict[str, Any]
    instants: list[int]
    """At which something began or ended; those of steps that preempt a request ten times."""


def outcome(
    scenario: dict[str, Any], stepping: str, acts: Sequence[Act] = (), *, is_silent: bool = False
) -> Outcome | None:
    """Decisions, request columns, and the summary without its timing keys; None for a combination that is refused."""
    stream = io.StringIO()
    try:
        loaded = load({**scenario, "engine": {**scenario["engine"], "stepping": stepping}})
        check_all(loaded)
        deployment = DEPLOYMENTS.of(loaded)
        record = simulate_cluster(loaded, decisions=None if is_silent else stream, acts=acts, deployment=deployment)
    except InputError:
        return None
    except SimulationError as error:
        return Outcome(stream.getvalue().splitlines(), {}, {"error": str(error)}, [])
    context = RunContext(
        slo=scenario.get("slo"), work=deployment.work, max_num_seqs=loaded.scenario.engine.max_num_seqs
    )
    summary = build_summary(record, context)
    del summary["run"]["cpu_s"], summary["run"]["wall_s"]
    columns = {name: column.tolist() for name, column in record.requests.items()}
    gaps = {"itl_ns": record.itl_ns.tolist(), "itl_weight": record.itl_weight.tolist()}
    gaps["itl_of_classes"] = [[each.tolist() for each in columns] for columns in record.itl_of_classes]
    gaps |= {f"interruptions.{name}": column.tolist() for name, column in record.interruptions.items()}
    more = {"reasons": record.reasons, "notes": record.notes, "drafts": record.drafts and vars(record.drafts)}
    instants = [*columns["arrival_ns"], *columns["end_ns"]]
    for name in ("scheduled_ns", "start_ns", "end_ns"):
        instants += record.steps[name].tolist()
    instants = sorted({*instants} - {-1})
    instants += record.steps["scheduled_ns"][record.steps["num_preempted"] > 0].tolist() * 10
    return Outcome(stream.getvalue().splitlines(), columns | gaps, summary | more, instants)


def compare(scenario: dict[str, Any], acts: Sequence[Act], reference: Outcome) -> None:
    """The fast engine, with its decisions written and without, against the reference."""
    fast, silent = (outcome(scenario, "fast", acts, is_silent=is_silent) for is_silent in (False, True))
    assert fast is not None
    assert silent is not None
    for line, (theirs, ours) in enumerate(zip(reference.lines, fast.lines, strict=False)):
        assert ours == theirs, f"line {line}"
    assert len(fast.lines) == len(reference.lines)
    for ours in (fast, silent):
        how = "with decisions" if ours is fast else "silent"
        for name, column in reference.columns.items():
            assert ours.columns[name] == column, f"{how}: {name}"
        for name, value in reference.summary.items():
            assert ours.summary[name] == value, f"{how}: {name}"


def assert_same(scenario: dict[str, Any], acts: Sequence[Act] = ()) -> Outcome:
    """Compare both engines, and return what they leave behind."""
    reference = outcome(scenario, "reference", acts)
    assert reference is not None
    compare(scenario, acts, reference)
    return reference


@pytest.fixture
def taken() -> Iterator[Counter[str]]:
    """How often each shortcut was taken."""
    with pytest.MonkeyPatch.context() as patch:
        yield Shortcuts(patch).counts


def draw(family: str, seed: int, *, is_noisy: bool = False) -> tuple[dict[str, Any], list[Act], Outcome] | None:
    """A scenario, what happens to it, and what the reference makes of it; None for a combination that is refused."""
    rng = Random(f"{family}/{seed}")
    scenario = FAMILIES[family](rng, f"{family}-{seed}")
    if is_noisy:
        scenario["latency"] = {**scenario["latency"], "noise": noises(Random(f"noise/{family}/{seed}"))}
    reference = outcome(scenario, "reference")
    if reference is None or rng.random() < 0.5 or not reference.columns:
        return None if reference is None else (scenario, [], reference)
    num_replicas = scenario["cluster"]["replicas"] * scenario["engine"].get("data_parallel_size", 1)
    acts = some_acts(rng, reference.instants, reference.columns, num_replicas)
    reference = outcome(scenario, "reference", acts)
    assert reference is not None
    return scenario, acts, reference


def compare_drawn(which: str, scenario: dict[str, Any], acts: Sequence[Act], reference: Outcome) -> None:
    """``compare``; where they differ, say what was drawn."""
    try:
        compare(scenario, acts, reference)
    except Exception as error:
        error.add_note(f"{which}: {scenario}\n{acts}")
        raise


@pytest.mark.parametrize("family", list(FAMILIES))
def test_fast_equals_the_reference(family: str, taken: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    most = sums.MOST_STRETCHES
    for seed in range(EXAMPLES):
        # Few stretches are kept now and then, so that they are dropped while plans have them.
        monkeypatch.setattr(sums, "MOST_STRETCHES", 3 if seed % 4 == 3 else most)
        drawn = draw(family, seed)
        if drawn is None:
            taken["refused"] += 1
            continue
        scenario, acts, reference = drawn
        compare_drawn(f"{family}, seed {seed}", scenario, acts, reference)
    times = max(EXAMPLES / (6 * SHORT), 1)  # rare ones are not evenly spread
    least = {key: number * times for key, number in LEAST[family].items() if EXAMPLES >= SHORT}
    few = {key: (taken[key], number) for key, number in least.items() if taken[key] < number}
    assert not few, "shortcuts taken too seldom: (how often, how often at least)"


@pytest.mark.parametrize("family", list(FAMILIES))
def test_fast_equals_the_reference_under_noise(family: str, taken: Counter[str]) -> None:
    """Spells of slow steps cut plans, come to groups of ranks, and end with the run; late clients send later."""
    for seed in range(EXAMPLES, EXAMPLES + EXAMPLES // 4):
        drawn = draw(family, seed, is_noisy=True)
        if drawn is None:
            continue
        scenario, acts, reference = drawn
        compare_drawn(f"{family}, seed {seed}", scenario, acts, reference)
        taken["late"] += "client" in scenario["latency"]["noise"]
        taken["spells"] += "step" in scenario["latency"]["noise"]
    least = LEAST_NOISE[family] if EXAMPLES >= SHORT else {}
    few = {key: (taken[key], number) for key, number in least.items() if taken[key] < number}
    assert not few, "ways taken too seldom: (how often, how often at least)"


def test_jumps_are_taken() -> None:
    """A run that fast-forward is made for takes far fewer rows than steps."""
    workload = {
        "requests": 50,
        "arrival": {"process": "constant", "rate": 1.0},
        "input_tokens": {"dist": "fixed", "value": 100},
        "output_tokens": {"dist": "fixed", "value": 200},
    }
    results = run(load({"name": "jumps", "workload": workload, "engine": {"model": "llama-2-7b", "gpu": "h100-sxm"}}))
    rows = results.record.steps["num_steps"]
    assert len(rows) < 0.2 * int(np.sum(rows))
