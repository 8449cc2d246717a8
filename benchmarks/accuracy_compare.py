"""Two profiles, one scenario: what each predicts, and which operator makes the difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.speed import markdown
from sim.errors import InputError

if TYPE_CHECKING:
    from sim.latency.base import StepShape
    from sim.latency.profile.cost import ProfileCost
    from sim.results.results import Results
    from sim.scenario.loader import LoadedScenario

KEYS = (
    *("mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "p99_tpot_ms", "mean_itl_ms", "mean_e2el_ms", "p99_e2el_ms"),
    *("output_throughput", "duration"),
)
SUMS = (
    *("num_prefills", "num_prefill_tokens", "prefill_context_tokens", "prefill_attention_pairs"),
    *("num_decodes", "decode_context_tokens", "num_sampled"),
)
MOST_STEPS = 300
"""Records of steps that the terms are summed over."""


@dataclass(frozen=True)
class Prediction:
    """One profile's: its summary, and its seconds of GPU time by term over the same steps."""

    profile: str
    summary: dict[str, float]
    terms_s: dict[str, float]
    kernels: dict[str, str]
    """Operator -> what was timed."""


def compare(scenario: Path, profiles: Sequence[str]) -> str:
    """The tables, as markdown. Raises InputError for a profile or scenario that cannot be used."""
    from sim.run import load, run

    loaded = [load(scenario, [f"latency.profile={name}", "latency.kind=profile"]) for name in profiles]
    results = [run(each) for each in loaded]
    steps = sampled_steps(results[0])
    found = [
        _prediction(name, each, result, steps) for name, each, result in zip(profiles, loaded, results, strict=True)
    ]
    return "\n\n".join(
        (
            f"Scenario {scenario}. First profile: {profiles[0]}.",
            _summary_table(found),
            f"GPU time of a pipeline stage over the {sum(count for count, _ in steps):,.0f} steps of the run with the"
            f" first profile, from {len(steps)} of its records:",
            _term_table(found),
            "What was timed:",
            _kernel_table(found),
        )
    )


def sampled_steps(results: Results, most: int = MOST_STEPS) -> list[tuple[float, StepShape]]:
    """Steps of the run, evenly taken from its records, each with how many steps it stands for."""
    import numpy as np

    from sim.latency.base import StepShape

    columns = {name: np.asarray(results.record.steps[name]) for name in (*SUMS, "num_steps", "gpu_ns")}
    busy = np.flatnonzero(columns["gpu_ns"] > 0)
    if not len(busy):
        raise InputError("the scenario has no steps to compare")
    chosen = busy[np.unique(np.linspace(0, len(busy) - 1, most).astype(int))]
    scale = float(columns["num_steps"][busy].sum() / columns["num_steps"][chosen].sum())
    found = []
    for row in chosen.tolist():
        shape = StepShape(**{name: int(columns[name][row]) for name in SUMS})
        # A record of many steps holds the sums of the first; they grow by a token per decode and step.
        shape.decode_context_tokens += shape.num_decodes * (int(columns["num_steps"][row]) - 1) // 2
        found.append((scale * float(columns["num_steps"][row]), shape))
    return found


def _prediction(
    name: str, loaded: LoadedScenario, results: Results, steps: Sequence[tuple[float, StepShape]]
) -> Prediction:
    cost = _cost(loaded)
    summary = {key: float(results.summary[key] or 0.0) for key in KEYS}
    terms: dict[str, float] = {}
    for count, shape in steps:
        for term, ns in cost.breakdown(shape).items():
            terms[term] = terms.get(term, 0.0) + count * ns / 1e9
    kernels = {operator: found.kernel for operator, found in sorted(cost.profile.operators.items())}
    return Prediction(name, summary, terms, kernels)


def _cost(loaded: LoadedScenario) -> ProfileCost:
    from sim.latency.build import build_step_cost
    from sim.latency.profile.cost import ProfileCost

    scenario = loaded.scenario
    cost = build_step_cost(scenario.engine, scenario.latency, loaded.base_dir)
    if not isinstance(cost, ProfileCost):
        raise InputError("latency.kind: not a profile")
    return cost


def _change(value: float, first: float) -> str:
    return f"{100 * (value / first - 1):+.1f} %" if first else ""


def _summary_table(found: Sequence[Prediction]) -> str:
    rows: list[tuple[str, ...]] = [("", *(each.profile for each in found), "second against first")]
    for key in KEYS:
        values = [each.summary[key] for each in found]
        rows.append((key, *(f"{value:,.2f}" for value in values), _change(values[1], values[0])))
    return markdown(rows)


def _term_table(found: Sequence[Prediction]) -> str:
    """Largest difference first."""
    names = dict.fromkeys(name for each in found for name in each.terms_s)
    values = {name: [each.terms_s.get(name, 0.0) for each in found] for name in names}
    ranked = sorted(values, key=lambda name: -abs(values[name][1] - values[name][0]))
    total = [sum(each.terms_s.values()) for each in found]
    rows: list[tuple[str, ...]] = [
        ("operator", *(f"{each.profile}, s" for each in found), "difference s", "share of all differences")
    ]
    moved = sum(abs(second - first) for first, second in values.values())
    for name in ranked:
        if not any(values[name]):
            continue
        off = values[name][1] - values[name][0]
        share = f"{100 * abs(off) / moved:.0f} %" if moved else ""
        rows.append((name, *(f"{value:.3f}" for value in values[name]), f"{off:+.3f}", share))
    rows.append(("all", *(f"{value:.3f}" for value in total), f"{total[1] - total[0]:+.3f}", ""))
    return markdown(rows)


def _kernel_table(found: Sequence[Prediction]) -> str:
    operators = sorted({operator for each in found for operator in each.kernels})
    rows = [("operator", *(each.profile for each in found))]
    rows += [(operator, *(each.kernels.get(operator, "-") for each in found)) for operator in operators]
    return markdown(rows)
