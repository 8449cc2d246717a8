"""The steady loop against the reference, on scenarios at the edges of what it is for.

Everything random here is a scenario that the loop takes at least a part of; ``test_engine_fast_forward.py`` has
the others. Decisions, requests and summaries must be equal, with the decisions written and without.
"""

from __future__ import annotations

import io
import json
import os
from typing import Any

import numpy as np
import pytest
from engine_profiled import PROFILED, kept_costs, profile_latency
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sim.engine.fast import decode_sums
from sim.engine.fast.decode_sums import MOST_SIZE
from sim.engine.fast.fast_forward import FastReplica
from sim.engine.fast.steady import SteadyLoop
from sim.errors import SimulationError
from sim.latency.base import StepShape
from sim.latency.build import build_step_cost
from sim.results.record import ColumnWriter, Recorder
from sim.run import load, run

EXAMPLES = int(os.environ.get("FAST_FORWARD_EXAMPLES", "60"))
COSTS = kept_costs
NO_SHRINK = (Phase.explicit, Phase.reuse, Phase.generate)
ENGINE: dict[str, Any] = {"model": "llama-2-7b", "gpu": "a100-80gb-sxm", "max_model_len": 1024}
ROOFLINE = {"kind": "roofline"}

Outcome = tuple[list[str], dict[str, Any], dict[str, list[int]]]


def outcome(scenario: dict[str, Any], stepping: str, *, decisions: bool = True) -> Outcome:
    """Decisions, summary without its timing keys, and request columns."""
    stream = io.StringIO()
    loaded = load({**scenario, "engine": {**scenario["engine"], "stepping": stepping}})
    try:
        results = run(loaded, decisions=stream if decisions else None)
    except SimulationError as error:
        return stream.getvalue().splitlines(), {"error": str(error)[:40]}, {}
    summary = json.loads(results.summary_json)
    for key in ("cpu_s", "wall_s"):
        del summary["run"][key]
    return stream.getvalue().splitlines(), summary, {k: v.tolist() for k, v in results.record.requests.items()}


def assert_equal(scenario: dict[str, Any]) -> None:
    reference, fast, silent = (
        outcome(scenario, "reference"),
        outcome(scenario, "fast"),
        outcome(scenario, "fast", decisions=False),
    )
    for line, (theirs, ours) in enumerate(zip(reference[0], fast[0], strict=False)):
        assert ours == theirs, f"line {line}"
    assert len(fast[0]) == len(reference[0])
    assert fast[2] == reference[2]
    assert fast[1] == reference[1]
    assert silent[1:] == fast[1:]


def values(numbers: list[int]) -> dict[str, Any]:
    return {"dist": "values", "values": numbers}


LENGTHS = st.one_of(
    st.lists(st.integers(1, 40), min_size=1, max_size=8).map(values),
    st.lists(st.sampled_from([1, 2, 15, 16, 17, 200, 700]), min_size=1, max_size=8).map(values),
    st.builds(lambda mean: {"dist": "lognormal", "mean": mean, "cv": 1.0, "max": 600}, st.integers(5, 150)),
)
ARRIVALS = st.one_of(
    st.builds(lambda rate: {"process": "poisson", "rate": rate}, st.sampled_from([0.3, 3.0, 12.0, 60.0])),
    # At one instant with the ends and starts of steps, and with each other.
    st.builds(lambda rate: {"process": "constant", "rate": rate}, st.sampled_from([1.0, 20.0, 50.0, 1e9])),
)


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    """Mostly steady: now and then a budget, the seats, the blocks or the host get in the way."""
    seats = draw(st.sampled_from([2, 12, 256]))
    engine: dict[str, Any] = {
        **ENGINE,
        "num_gpu_blocks_override": draw(st.sampled_from([70, 150, 4000])),
        "max_num_seqs": seats,
        "max_num_batched_tokens": max(seats, draw(st.sampled_from([32, 256, 2048]))),
        "block_size": draw(st.sampled_from([8, 16, 32])),
        "enable_prefix_caching": draw(st.booleans()),
        "async_scheduling": draw(st.integers(0, 5)) > 0,
        "scheduler_reserve_full_isl": draw(st.booleans()),
        "watermark": draw(st.sampled_from([0.0, 0.05])),
        "policy": draw(st.sampled_from(["fcfs", "srtf", "hybrid", "sjf", "throughput"])),
        "predictor": draw(st.sampled_from(["exact", "noisy", "max_tokens", "learned"])),
        "enable_chunked_prefill": draw(st.integers(0, 3)) > 0,
    }
    if engine["enable_chunked_prefill"] and draw(st.integers(0, 3)) == 0:
        engine["max_prefill_tokens_per_step"] = draw(st.sampled_from([20, 300]))
    workload = {
        "requests": draw(st.integers(1, 80)),
        "arrival": draw(ARRIVALS),
        "input_tokens": draw(LENGTHS),
        "output_tokens": draw(LENGTHS),
    }
    if draw(st.integers(0, 9)) == 0:
        workload["max_tokens"] = {"dist": "fixed", "value": draw(st.sampled_from([30, 600]))}
    latency = draw(
        st.sampled_from(
            [
                ROOFLINE,
                ROOFLINE,
                {"kind": "roofline", "host_overhead_ms": 0.0},
                # What the accelerator takes: for one request and a little context, for several or more context.
                {"kind": "roofline", "host_overhead_ms": 8.82},
                {"kind": "roofline", "host_overhead_ms": 9.0},
                {"kind": "constant", "step_s": 0.02},
            ]
        )
    )
    if draw(st.booleans()):
        change, host_ms = draw(st.sampled_from(PROFILED))
        engine, latency = {**engine, **change}, profile_latency(draw(st.sampled_from(host_ms)))
    return {
        "name": "steady",
        "seed": draw(st.integers(0, 5)),
        "workload": workload,
        "cluster": {"replicas": draw(st.integers(1, 3)), "router": "round_robin"},
        "engine": engine,
        "latency": latency,
        "slo": {"ttft_p95_ms": 500, "itl_p99_ms": 100},
    }


@settings(max_examples=EXAMPLES, deadline=None, phases=NO_SHRINK)
@given(scenario=scenarios())
def test_the_steady_loop_equals_the_reference(scenario: dict[str, Any]) -> None:
    assert_equal(scenario)


# --- that it is taken, and given up ----------------------------------------------------------------


def scenario_of(rows: dict[str, Any], **engine: Any) -> dict[str, Any]:
    return {"name": "steady", "workload": rows, "engine": {**ENGINE, **engine}, "latency": ROOFLINE}


def traffic(inputs: list[int], outputs: list[int], rate: float = 4.0, requests: int = 60) -> dict[str, Any]:
    arrival = {"process": "poisson", "rate": rate}
    return {"requests": requests, "arrival": arrival, "input_tokens": values(inputs), "output_tokens": values(outputs)}


@pytest.fixture
def takings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How the loop was entered, run by run: ``idle`` or ``busy``."""
    taken: list[str] = []
    real = SteadyLoop._run

    def counted(self: SteadyLoop, now_ns: int, busy_ns: int, *, is_idle: bool) -> None:
        taken.append("idle" if is_idle else "busy")
        real(self, now_ns, busy_ns, is_idle=is_idle)

    monkeypatch.setattr(SteadyLoop, "_run", counted)
    return taken


def test_a_usual_run_is_one_loop(takings: list[str]) -> None:
    results = run(load(scenario_of(traffic([100, 300], [50, 120]))))
    assert takings == ["idle"]
    steps = results.record.steps
    assert (steps["num_preempted"] == 0).all()
    assert len(steps["replica"]) < 0.2 * int(np.sum(steps["num_steps"]))


LONG_ONES = traffic([60] * 20 + [500] + [60] * 20, [300], rate=3.0, requests=41)


def test_prompts_in_chunks_and_others_behind_them_stay_in_the_loop(takings: list[str]) -> None:
    for policy in ("fcfs", "srtf", "hybrid"):
        rows = traffic([60, 700, 20, 400, 900, 30, 5], [40, 3, 1, 20], rate=12.0, requests=90)
        assert_equal(scenario_of(rows, max_num_batched_tokens=256, policy=policy))
    assert takings == ["idle"] * 6


def test_a_prompt_that_may_not_be_cut_interrupts_the_loop_and_it_comes_back(takings: list[str]) -> None:
    rows = traffic([60] * 20 + [200] + [60] * 20, [300], rate=15.0, requests=82)
    engine = {"max_num_batched_tokens": 256, "enable_chunked_prefill": False, "policy": "sjf"}
    scenario = scenario_of(rows, **engine)
    assert_equal(scenario)
    assert "busy" in takings


@pytest.mark.parametrize("policy", ["srtf", "sjf", "hybrid", "throughput"])
def test_a_ranked_policy_short_of_room_interrupts_the_loop_and_it_comes_back(policy: str, takings: list[str]) -> None:
    rows = traffic([60, 300, 20, 100], [70, 20, 200], rate=3.0, requests=120)
    rows["arrival"] = {"process": "gamma", "rate": 3.0, "cv": 4.0}
    scenario = scenario_of(rows, num_gpu_blocks_override=60, policy=policy)
    assert_equal(scenario)
    assert run(load(scenario)).summary["preemptions"]["total"] > 0
    assert len(takings) > 6


def test_blocks_that_run_out_interrupt_the_loop(takings: list[str]) -> None:
    scenario = scenario_of(traffic([200], [150], rate=6.0), num_gpu_blocks_override=100, enable_prefix_caching=False)
    assert_equal(scenario)
    preempted = run(load(scenario)).summary["preemptions"]["total"]
    assert takings
    assert preempted > 0


def test_blocks_of_its_own_are_found_again_by_a_request_that_the_loop_began(takings: list[str]) -> None:
    """Prompts shorter than a block, generated tokens by the hundred, preempted after the loop gave up."""
    rows = traffic([7, 4, 19, 28, 36, 5, 1, 11], [700, 16, 2, 1, 16, 2, 17, 2], requests=65)
    rows["arrival"] = {"process": "constant", "rate": 50.0}
    scenario = scenario_of(rows, num_gpu_blocks_override=70)
    assert_equal(scenario)
    requests = run(load(scenario)).record.requests
    assert sum(requests["num_preemptions"]) > 0
    assert takings


def test_nothing_is_outstanding_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    real = FastReplica.finish

    def finish(self: FastReplica) -> None:
        real(self)
        left.append(self.scheduler.outstanding_tokens)

    monkeypatch.setattr(FastReplica, "finish", finish)
    run(load(scenario_of(LONG_ONES, max_num_batched_tokens=256)))
    run(load(scenario_of(traffic([200], [150], rate=6.0), num_gpu_blocks_override=100)))
    # Chunks in flight, and requests that wait, when the host becomes the slower one.
    rows = traffic([60, 700, 20, 400], [40], rate=12.0, requests=90)
    scenario = scenario_of(rows, max_num_batched_tokens=64, policy="srtf", max_num_seqs=12)
    scenario["latency"] = {"kind": "roofline", "host_overhead_ms": 9.0}
    run(load(scenario))
    assert left == [0, 0, 0]


@pytest.mark.parametrize(("change", "host_ms"), PROFILED)
def test_with_measured_costs_the_loop_is_taken_too(
    change: dict[str, Any], host_ms: list[float | None], takings: list[str]
) -> None:
    for overhead_ms in host_ms:
        scenario = scenario_of(traffic([40, 300, 700], [30, 60, 3], rate=6.0), **change)
        scenario["latency"] = profile_latency(overhead_ms)
        assert_equal(scenario)
    assert takings


@pytest.mark.parametrize("overhead_ms", [8.81, 8.83, 8.85, 8.88, 8.9, 8.95, 9.0, 12.0])
def test_a_host_slower_than_the_accelerator_interrupts_the_loop(overhead_ms: float, takings: list[str]) -> None:
    """A step takes 8.80 ms for one short request, 8.84 for two, 9.01 for two long ones."""
    scenario = scenario_of(traffic([40, 300], [30, 60], rate=3.0))
    scenario["latency"] = {"kind": "roofline", "host_overhead_ms": overhead_ms}
    assert_equal(scenario)
    assert takings


def test_seats_blocks_budget_and_watermark_bound_a_step_that_admits() -> None:
    """Each just where the decodes of the step leave too little for the prompt."""
    full = traffic([20], [200], rate=25.0, requests=120)
    assert_equal(scenario_of(full, max_num_batched_tokens=64, max_num_seqs=60))
    assert_equal(scenario_of(full, max_num_seqs=30))
    assert_equal(scenario_of(traffic([200], [60], rate=12.0), num_gpu_blocks_override=80, watermark=0.3))
    assert_equal(scenario_of(traffic([200], [20], rate=50.0), max_prefill_tokens_per_step=399))


@pytest.mark.parametrize(
    "change",
    [
        {"async_scheduling": False},
        {"policy": "fair"},
        {"policy": {"name": "deadline"}},
        {"policy": "sjf", "predictor": "learned"},
        {"batching": "static"},
        {"kv": "contiguous"},
        {"preemption": "swap"},
        {"pipeline_parallel_size": 2},
        {"long_prefill_token_threshold": 64},
    ],
)
def test_other_engines_never_take_it(change: dict[str, Any], takings: list[str]) -> None:
    assert_equal(scenario_of(traffic([40, 90], [30]), **change))
    assert not takings


def test_prompts_that_others_share_and_ends_that_nobody_knows_never_take_it(takings: list[str]) -> None:
    shared = {**traffic([80], [20]), "prefix": {"groups": 2, "tokens": 32}}
    unknown = {**traffic([80], [20]), "max_tokens": {"dist": "fixed", "value": 100}}
    for workload in (shared, unknown):
        assert_equal(scenario_of(workload))
    assert not takings


def test_a_router_that_reads_load_never_takes_it(takings: list[str]) -> None:
    scenario = scenario_of(traffic([80], [20]))
    scenario["cluster"] = {"replicas": 2, "router": "least_outstanding"}
    assert_equal(scenario)
    assert not takings


def test_requests_that_can_never_run_are_refused_when_they_arrive(takings: list[str]) -> None:
    scenario = scenario_of(traffic([100, 2000, 50], [40]))
    assert_equal(scenario)
    counts = run(load(scenario)).summary["counts"]
    assert (counts["completed"], counts["rejected"]) == (40, 20)
    assert takings


def test_a_pool_too_small_for_what_each_request_reserves_refuses_all() -> None:
    scenario = scenario_of(traffic([20], [5]), kv="contiguous", num_gpu_blocks_override=40)
    assert_equal(scenario)
    assert run(load(scenario)).summary["counts"]["rejected"] == 60


def test_many_at_once_and_long_ones_alone(takings: list[str]) -> None:
    """Sums made for a few steps only, and sums that run beyond one stretch."""
    scenario = scenario_of(traffic([30, 90, 400, 5], [70, 3, 600, 40], rate=25.0, requests=150))
    assert_equal(scenario)
    assert max(run(load(scenario)).record.steps["num_decodes"]) > MOST_SIZE
    assert takings


def test_sums_that_are_thrown_away_lose_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_sums, "MOST_STRETCHES", 2)
    assert_equal(scenario_of(traffic([30, 90, 400], [70, 200])))


def test_sums_are_those_of_single_steps() -> None:
    loaded = load(scenario_of(traffic([1], [1])))
    cost = build_step_cost(loaded.scenario.engine, loaded.scenario.latency, loaded.base_dir)
    sums = decode_sums.DecodeSums(cost, Recorder())
    stretch, short = sums.make(3, 1000), sums.make_short(3, 1000, 5)
    steps = [cost.gpu_ns(StepShape(num_decodes=3, num_sampled=3, decode_context_tokens=c)) for c in (1000, 1003, 1006)]
    assert np.diff(stretch.sums[:4]).tolist() == np.diff(short.sums[:4]).tolist() == steps
    assert stretch.least_ns == short.least_ns == steps[0]
    assert sums.stretches == {(3, 1000): stretch}


# --- rows of both kinds ------------------------------------------------------------------------------


def test_rows_of_steps_come_in_the_order_in_which_they_were_written() -> None:
    recorder = Recorder()

    def plain(at_ns: int) -> None:
        recorder.steps.append((0, at_ns, *[0] * 19))

    def steady(at_ns: int) -> None:
        recorder.steady_steps.append((0, at_ns, *[0] * 13))

    plain(1)
    recorder.start_steady()
    steady(2)
    steady(3)
    plain(4)
    recorder.start_steady()
    steady(4)
    plain(4)
    plain(5)
    recorder.start_steady()
    steady(6)
    assert recorder.step_columns()["scheduled_ns"].tolist() == [1, 2, 3, 4, 4, 4, 5, 6]


def test_rows_packed_now_and_then_are_the_rows() -> None:
    writer = ColumnWriter(("a", "b"))
    for i in range(100):
        writer.append((i, -i))
        writer.trim(7)
    assert len(writer) == 100
    columns = writer.take_columns()
    assert columns["a"].tolist() == list(range(100))
    assert columns["b"].tolist() == list(range(0, -100, -1))


def test_gaps_taken_back_leave_nothing() -> None:
    recorder = Recorder()
    recorder.itl(7, 3)
    recorder.itl(5, 2)
    recorder.itl(7, -3)
    gaps, weights = recorder.itl_columns()
    assert (gaps.tolist(), weights.tolist()) == ([5], [2])
