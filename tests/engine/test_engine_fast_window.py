"""Requests that outgrow a sliding window: the fast replica decides as the reference does, block for block.

``FAST_FORWARD_EXAMPLES`` sets the number of random scenarios (the default is a short version).
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from engines import any_block
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from windowed_model import windowed_model

from policies.registry import POLICIES
from sim.cluster import simulate
from sim.cluster.acts import Act, What
from sim.engine.fast.fast_replica import FastReplica
from sim.engine.variants.window_fast import WindowReplica
from sim.errors import InputError, SimulationError
from sim.results.context import RunContext
from sim.results.summary import build_summary
from sim.run import load

EXAMPLES = int(os.environ.get("FAST_FORWARD_EXAMPLES", "40"))
NO_SHRINK = (Phase.explicit, Phase.reuse, Phase.generate)
ACTS = [What.CANCEL, What.CANCEL, What.CRASH, What.SLOW]
LATENCIES: list[dict[str, Any]] = [
    {"kind": "constant", "step_s": 0.01},
    {"kind": "roofline"},
    {"kind": "roofline", "host_overhead_ms": 0.0},
    {"kind": "roofline", "host_overhead_ms": 40.0},
]


@st.composite
def scenarios(draw: st.DrawFn) -> tuple[dict[str, Any], list[Act]]:
    """Windows and prompts around multiples of a block, pools from ample to tiny, and what happens to the replica."""
    block_size = draw(st.sampled_from([4, 8, 16]))
    window = draw(st.sampled_from([1, 2, 7, block_size, block_size + 1, 2 * block_size - 1, 40, 64, 130]))
    near = [window + more for more in (0, 1, block_size - 1, block_size)] + [1, block_size, 3 * window + 2]
    lengths = st.one_of(
        st.sampled_from(near).map(lambda value: {"dist": "fixed", "value": value}),
        st.integers(2, 120).map(lambda mean: {"dist": "exponential", "mean": mean, "max": 400}),
        st.lists(st.integers(1, 350), min_size=3, max_size=5).map(lambda values: {"dist": "values", "values": values}),
    )
    requests = draw(st.integers(1, 50))
    arrival = draw(
        st.sampled_from(
            [
                {"process": "poisson", "rate": 20.0},
                {"process": "poisson", "rate": 200.0},
                {"process": "burst"},
                {"process": "closed_loop", "concurrency": 6, "think_time_s": 0.0},
            ]
        )
    )
    workload = {"requests": requests, "arrival": arrival, "input_tokens": draw(lengths), "output_tokens": draw(lengths)}
    workload |= draw(
        st.sampled_from(
            [
                {},
                {},
                {"patience_s": 0.3},
                {"max_tokens": {"dist": "fixed", "value": 30}},
                {"prefix": {"groups": 2, "tokens": 40}},
            ]
        )
    )
    engine = {
        "model": windowed_model(window),
        "gpu": "a100-80gb-sxm",
        "max_model_len": 1024,
        "block_size": block_size,
        "num_gpu_blocks_override": draw(st.sampled_from([3000, 300, 120, 80, 60])),
        "max_num_seqs": draw(st.sampled_from([2, 8, 31, 64])),
        "max_num_batched_tokens": draw(st.sampled_from([65, 100, 512])),
        "enable_prefix_caching": draw(st.booleans()),
        "async_scheduling": draw(st.booleans()),
        "scheduler_reserve_full_isl": draw(st.booleans()),
        "watermark": draw(st.sampled_from([0.0, 0.0, 0.1])),
        "policy": draw(st.sampled_from(["fcfs", "fcfs", *sorted(POLICIES)])),
    }
    instants = st.one_of(st.integers(0, 5 * 10**9), st.integers(0, 500).map(lambda hundredths: hundredths * 10**7))
    acts = [
        Act(draw(instants), what, draw(st.integers(0, requests - 1)) if what is What.CANCEL else 0, factor)
        for what, factor in draw(st.lists(st.tuples(st.sampled_from(ACTS), st.sampled_from([1.0, 1.37])), max_size=4))
    ]
    return {
        "name": "w",
        "workload": workload,
        "engine": any_block(engine),
        "latency": draw(st.sampled_from(LATENCIES)),
    }, acts


def outcome(scenario: dict[str, Any], acts: Sequence[Act], stepping: str) -> tuple[list[str], Any, Any]:
    """Decisions, summary without its timing keys, and request columns."""
    stream = io.StringIO()
    loaded = load({**scenario, "engine": {**scenario["engine"], "stepping": stepping}})
    try:
        record = simulate.simulate_cluster(loaded, decisions=stream, acts=acts)
    except SimulationError as error:
        return stream.getvalue().splitlines(), str(error), None
    summary = build_summary(record, RunContext())
    summary["run"] = {key: value for key, value in summary["run"].items() if key not in ("cpu_s", "wall_s")}
    columns = {**record.requests, **{f"interruptions.{k}": v for k, v in record.interruptions.items()}}
    return stream.getvalue().splitlines(), summary, {k: v.tolist() for k, v in columns.items()}


def assert_equal(scenario: dict[str, Any], acts: Sequence[Act] = ()) -> None:
    """Fast and reference, to the last digit."""
    theirs, ours = (outcome(scenario, acts, stepping) for stepping in ("reference", "fast"))
    for number, (line, other) in enumerate(zip(theirs[0], ours[0], strict=False)):
        assert other == line, f"line {number}"
    assert ours == theirs


@settings(max_examples=EXAMPLES, deadline=None, phases=NO_SHRINK)
@given(scenario=scenarios())
def test_the_fast_replica_equals_the_reference(scenario: tuple[dict[str, Any], list[Act]]) -> None:
    try:
        load(scenario[0])
    except InputError:
        return  # a combination that is refused
    assert_equal(*scenario)


# --- every way is taken --------------------------------------------------------------------------

SHORT = (30, 16, 45)
"""Prompts that outgrow the window as they decode."""
TIGHT: dict[str, Any] = {"num_gpu_blocks_override": 45, "scheduler_reserve_full_isl": False}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each way was taken."""
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str, key: str, amount: Any = lambda *_, **__: 1) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **more: Any) -> Any:
            counts[key] += amount(*args, **more)
            return real(*args, **more)

        monkeypatch.setattr(owner, name, counted)

    count(WindowReplica, "_commit", "planned steps", lambda replica, plan, steps: steps)
    count(WindowReplica, "_commit", "planned drops", lambda replica, plan, steps: any(replica.drops) and steps > 1)
    count(FastReplica, "_commit", "written steps", lambda replica, plan, steps: steps)
    count(WindowReplica, "_step", "single steps")
    count(WindowReplica, "_serve_one_by_one", "one by one")
    count(WindowReplica, "preempt", "preempted")
    count(simulate, "Replica", "reference replicas")
    return counts


def crowd(inputs: Sequence[int] = (200, 63, 300, 64, 40), **engine: Any) -> dict[str, Any]:
    """40 requests of 40 to 300 tokens behind a window of 64, whose context grows by 20 to 150."""
    workload = {
        "requests": 40,
        "arrival": {"process": "poisson", "rate": 20.0},
        "input_tokens": {"dist": "values", "values": list(inputs)},
        "output_tokens": {"dist": "values", "values": [150, 60, 20]},
    }
    sizes = {"max_model_len": 512, "max_num_batched_tokens": 128, "max_num_seqs": 64, "num_gpu_blocks_override": 2000}
    engine = any_block({"model": windowed_model(64), "gpu": "a100-80gb-sxm", **sizes, **engine})
    return {"name": "crowd", "workload": workload, "engine": engine}


@pytest.mark.parametrize("is_async", [False, True])
def test_steps_are_planned_with_what_members_give_back(taken: Counter[str], is_async: bool) -> None:
    assert_equal(crowd(async_scheduling=is_async))
    assert taken["planned steps"] > taken["single steps"]
    assert taken["planned drops"] >= 20
    assert taken["reference replicas"] == 1, "that of the run to compare with"


@pytest.mark.parametrize("is_async", [False, True])
def test_under_pressure_requests_are_served_one_by_one_and_preempted(taken: Counter[str], is_async: bool) -> None:
    assert_equal(crowd(SHORT, async_scheduling=is_async, enable_prefix_caching=False, **TIGHT))
    assert taken["one by one"] >= 20
    assert taken["preempted"] >= 5
    assert taken["reference replicas"] == 1, "that of the run to compare with"


@pytest.mark.parametrize("is_async", [False, True])
def test_the_last_token_of_a_prompt_done_again_takes_nothing_of_the_budget_for_prompts(is_async: bool) -> None:
    """A resumed request gets its last chunk of one token, and the next prompt begins in the same step."""
    engine = {"async_scheduling": is_async, "enable_prefix_caching": False, "max_prefill_tokens_per_step": 9}
    resumed = crowd(SHORT, **engine, **TIGHT)
    for seed in range(4):
        assert_equal({**resumed, "seed": seed})


def test_a_crash_loses_the_empty_step_behind_the_last_batch_in_flight() -> None:
    """With the last token in flight an asynchronous engine forms a step of nothing, at once."""
    alone = crowd([100], async_scheduling=True)
    one = {"requests": 1, "arrival": {"process": "burst"}, "output_tokens": {"dist": "fixed", "value": 5}}
    alone["workload"] |= one
    alone["latency"] = {"kind": "constant", "step_s": 1.0}
    for half_seconds in range(1, 12):
        assert_equal(alone, [Act(half_seconds * 10**9 // 2, What.CRASH, 0)])


@pytest.mark.parametrize("seed", [5, 8, 11])
def test_a_request_that_ends_with_the_token_in_flight_when_it_lost_a_step_gives_back_what_it_has(seed: int) -> None:
    """The first in line gives up its own blocks, and none behind it gets a step; one of them is at its end (EOS)."""
    engine = {"num_gpu_blocks_override": 60, "max_prefill_tokens_per_step": 50, "max_num_seqs": 31}
    lost = crowd(model="llama-2-7b", policy="throughput", async_scheduling=True, **{**TIGHT, **engine})
    lost["engine"]["enable_prefix_caching"] = False
    lost["workload"] |= {
        "arrival": {"process": "burst"},
        "input_tokens": {"dist": "exponential", "mean": 62, "max": 400},
        "output_tokens": {"dist": "values", "values": [212, 262, 44, 242, 116]},
        "max_tokens": {"dist": "fixed", "value": 300},
    }
    assert_equal({**lost, "seed": seed})


def test_a_preempted_request_that_may_find_its_blocks_is_left_to_the_reference(taken: Counter[str]) -> None:
    assert_equal(crowd(SHORT, **TIGHT))
    assert taken["preempted"] == 1
    assert taken["reference replicas"] == 2


def test_shared_content_behind_a_window_is_left_to_the_reference(taken: Counter[str]) -> None:
    shared = crowd()
    shared["workload"]["prefix"] = {"groups": 2, "tokens": 40}
    assert_equal(shared)
    assert taken == {"reference replicas": 2}
    shared["engine"]["enable_prefix_caching"] = False
    assert_equal(shared)
    assert taken["planned drops"] >= 20


def test_the_fewest_free_blocks_within_a_plan_are_written_down(taken: Counter[str]) -> None:
    """Blocks are taken at one phase and given back at another; a row has those free at its end, so it ends early."""
    few = crowd((137,), model=windowed_model(130), block_size=8)
    few["workload"] |= {"requests": 10, "arrival": {"process": "poisson", "rate": 2.0}}
    few["workload"]["output_tokens"] = {"dist": "values", "values": [307, 271, 155, 190, 270]}
    assert_equal({**few, "seed": 4})
    assert 0 < taken["written steps"] < taken["planned steps"]
