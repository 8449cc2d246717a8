"""Random runs with acts from outside, and all that they leave behind, to be compared between both steppings."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from test_engine_fast_forward import traffic

from policies.registry import POLICIES, PREDICTORS, ROUTERS
from sim.checks.all_checks import check_all
from sim.cluster.acts import Act, What
from sim.cluster.simulate import simulate_cluster
from sim.errors import InputError, SimulationError
from sim.run import load
from sim.workload.build_table import build_workload


@dataclass
class Outcome:
    """What one stepping made of a scenario."""

    lines: list[str]
    error: str = ""
    columns: dict[str, list[int]] = field(default_factory=dict)
    more: tuple[object, ...] = ()


@st.composite
def classes(draw: st.DrawFn) -> dict[str, Any]:
    """A workload of one class or two, with priorities."""
    first = draw(traffic())
    if first["arrival"]["process"] == "closed_loop":
        return first
    others = traffic().filter(lambda each: each["arrival"]["process"] != "closed_loop")
    found = [first, draw(others)] if draw(st.booleans()) else [first]
    return {"classes": [{**each, "name": f"c{i}", "priority": i} for i, each in enumerate(found)]}


def patiences() -> st.SearchStrategy[list[int | None]]:
    """Of each class: when its clients leave, in ns."""
    return st.lists(st.sampled_from([None, None, 3 * 10**8, 2 * 10**9]), min_size=2, max_size=2)


def pressed() -> st.SearchStrategy[dict[str, Any]]:
    """Engine keys: more or less pressure."""
    return st.fixed_dictionaries(
        {
            "max_model_len": st.just(1024),
            "num_gpu_blocks_override": st.sampled_from([66, 66, 130, 3000]),
            "max_num_seqs": st.sampled_from([4, 16, 63]),
            "max_num_batched_tokens": st.sampled_from([64, 512, 2048]),
            "block_size": st.sampled_from([8, 16]),
            "enable_prefix_caching": st.booleans(),
            "async_scheduling": st.booleans(),
            "policy": st.sampled_from(["fcfs", "fcfs", "fcfs", *sorted(POLICIES)]),
            "predictor": st.sampled_from(sorted(PREDICTORS)),
        }
    )


def clusters(most: int) -> st.SearchStrategy[dict[str, Any]]:
    """Up to ``most`` replicas behind any router."""
    return st.fixed_dictionaries(
        {"replicas": st.integers(1, most), "router": st.sampled_from(["round_robin", *sorted(ROUTERS)])}
    )


def latencies() -> st.SearchStrategy[dict[str, Any]]:
    """Step costs: bound by the accelerator, by the host, and with many events at one instant."""
    rooflines = [{"kind": "roofline"}, *({"kind": "roofline", "host_overhead_ms": ms} for ms in (0.0, 0.5, 40.0))]
    return st.sampled_from([{"kind": "profile"}, {"kind": "constant", "step_s": 0.01}, *rooflines])


def some_acts(num_replicas: int) -> st.SearchStrategy[list[Act]]:
    """A few acts, mostly none; some at the instant of a step's end or of an arrival."""
    instants = st.one_of(st.integers(0, 3 * 10**9), st.integers(0, 300).map(lambda n: n * 10**7))
    cancels = st.builds(Act, instants, st.just(What.CANCEL), st.integers(0, 40))
    kinds = st.sampled_from([What.CRASH, What.CRASH, What.DRAIN, What.UNDRAIN, What.SLOW])
    others = st.builds(Act, instants, kinds, st.integers(0, num_replicas - 1), st.sampled_from([0.5, 1.0, 1.7]))
    return st.lists(st.one_of(cancels, others), max_size=5)


def outcome(
    scenario: dict[str, Any], stepping: str, acts: Sequence[Act] = (), patience_ns: Sequence[int | None] = (None, None)
) -> Outcome | None:
    """Everything that a run leaves behind; None for a combination that is refused."""
    stream = io.StringIO()
    try:
        loaded = load({**scenario, "engine": {**scenario["engine"], "stepping": stepping}})
        check_all(loaded)
        table = build_workload(
            loaded.scenario.workload, loaded.scenario.seed, None, loaded.scenario.engine.max_model_len
        )
        kinds = [replace(kind, patience_ns=ns) for kind, ns in zip(table.classes, patience_ns, strict=False)]
        record = simulate_cluster(loaded, decisions=stream, acts=acts, workload=replace(table, classes=tuple(kinds)))
    except InputError:
        return None
    except SimulationError as error:
        return Outcome(stream.getvalue().splitlines(), str(error)[:40])
    order = np.argsort(record.steps["replica"], kind="stable")
    columns = {name: column[order].tolist() for name, column in record.steps.items()}
    columns |= {f"request_{name}": column.tolist() for name, column in record.requests.items()}
    columns |= {"itl_ns": record.itl_ns.tolist(), "itl_weight": record.itl_weight.tolist()}
    drafts = None if record.drafts is None else vars(record.drafts)
    return Outcome(stream.getvalue().splitlines(), "", columns, (record.reasons, drafts, record.notes))


def assert_same(reference: Outcome | None, fast: Outcome | None) -> None:
    """Compare them, the first line that differs first."""
    if reference is None or fast is None:
        assert fast is reference
        return
    for line, (theirs, ours) in enumerate(zip(reference.lines, fast.lines, strict=False)):
        assert ours == theirs, f"line {line}"
    assert len(fast.lines) == len(reference.lines)
    for name, column in reference.columns.items():
        assert fast.columns[name] == column, name
    assert fast == reference
