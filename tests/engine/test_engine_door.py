"""What the outside does to a replica: cancel, crash, drain, a step cost that changes, and what hears of ends."""

from __future__ import annotations

import random
from typing import Any

import pytest
from engine_replicas import SECOND, Bench

from policies.fcfs import Fcfs
from policies.priority import Priority
from sim.engine.clock import Turn
from sim.engine.request import NEVER
from sim.errors import SimulationError
from sim.latency.constant import ConstantCost
from sim.latency.slowed import slowed
from sim.results.record import Status

DEPTHS = pytest.mark.parametrize("depth", [1, 2])


def end_of(bench: Bench, row: int) -> tuple[float, str, int]:
    """(end in s, status, tokens) of a row's only attempt."""
    found = bench.attempts
    at = found["row"].tolist().index(row)
    return found["end_ns"][at] / SECOND, Status(found["status"][at]).name.lower(), int(found["output_tokens"][at])


# --- cancel ----------------------------------------------------------------------------------------


@DEPTHS
def test_a_waiting_request_that_is_cancelled_is_never_scheduled(depth: int) -> None:
    bench = Bench(depth=depth, max_num_seqs=1)
    bench.arrive(0, output=4)
    waiting = bench.arrive(0.5)
    bench.cancel(1.5, waiting)
    bench.run()
    assert bench.ends == [(1.5, 1, "cancelled"), (4.0, 0, "completed")]
    attempts = bench.attempts
    assert (attempts["scheduled_ns"][1], attempts["first_token_ns"][1], attempts["finish_ns"][1]) == (NEVER,) * 3
    assert (attempts["end_ns"][1], attempts["output_tokens"][1]) == (1.5 * SECOND, 0)


@DEPTHS
def test_a_prefill_that_is_cancelled_stops_after_the_chunk_in_flight(depth: int) -> None:
    bench = Bench(depth=depth, max_num_batched_tokens=16)
    bench.cancel(1.5, bench.arrive(0, prompt=100))
    other = bench.arrive(0, prompt=8, output=1)
    bench.run()
    formed_before = [tokens for formed, _, tokens in bench.steps if formed < 1.5 and tokens]
    assert formed_before == [16] * (1 + depth)
    assert end_of(bench, other)[1] == "completed"


@DEPTHS
def test_a_decode_that_is_cancelled_keeps_its_tokens_and_gives_back_its_blocks_at_once(depth: int) -> None:
    bench = Bench(depth=depth)
    row = bench.arrive(0, prompt=32, output=10)
    free: list[int] = []
    bench.at(2.5, Turn.ARRIVAL, lambda: free.append(bench.replica.free_blocks))
    bench.cancel(2.5, row)
    bench.run()
    assert free == [1000]
    assert bench.ends == [(2.5, 0, "cancelled")]
    assert max(ended for _, ended, _ in bench.steps) == 2.0 + depth, "what is in flight goes on"
    attempts = bench.attempts
    assert (attempts["output_tokens"][0], attempts["finish_ns"][0]) == (2, NEVER)
    assert attempts["first_token_ns"][0] == SECOND


@DEPTHS
def test_at_the_instant_of_its_last_token_it_is_complete(depth: int) -> None:
    bench = Bench(depth=depth)
    bench.cancel(3.0, bench.arrive(0, output=3))
    bench.run()
    assert bench.ends == [(3.0, 0, "completed")]


@DEPTHS
def test_at_the_instant_of_a_step_it_is_not_in_it(depth: int) -> None:
    bench = Bench(depth=depth)
    bench.cancel(2.0, bench.arrive(0, prompt=8, output=9))
    bench.arrive(0, prompt=8, output=5)
    bench.run()
    assert [tokens for formed, _, tokens in bench.steps if formed == 2.0] == [1]
    assert end_of(bench, 0) == (2.0, "cancelled", 2)


@DEPTHS
def test_one_that_arrives_at_the_instant_is_not_hit_and_one_that_has_ended_stays_as_it_is(depth: int) -> None:
    bench = Bench(depth=depth)
    row = bench.arrive(0, output=2)
    for at_s in (5.0, 6.0):
        bench.cancel(at_s, row)
    bench.run()
    assert bench.ends == [(2.0, 0, "completed")]


@DEPTHS
def test_the_last_request_gone_the_replica_sleeps_and_wakes(depth: int) -> None:
    bench = Bench(depth=depth)
    bench.cancel(0.25, bench.arrive(0, output=9))
    late = bench.arrive(20.0, output=2)
    bench.run()
    assert end_of(bench, late) == (22.0, "completed", 2)
    assert all(ended <= depth or formed >= 20.0 for formed, ended, _ in bench.steps)


def test_a_status_of_the_callers_choice_is_written() -> None:
    bench = Bench()
    bench.cancel(1.5, bench.arrive(0, output=9), Status.TIMED_OUT)
    bench.run()
    assert end_of(bench, 0) == (1.5, "timed_out", 1)


def test_before_its_step_is_formed_a_lone_request_leaves_no_step() -> None:
    """It arrives and leaves in one instant; something else at that instant makes the replica wait for its turn."""
    bench = Bench()
    bench.arrive(1.0)
    bench.at(1.0, Turn.CONTROL, lambda: bench.replica.cancel(bench.requests[0], Status.CANCELLED))
    bench.run()
    assert bench.steps == []
    assert bench.ends == [(1.0, 0, "cancelled")]


def test_a_static_batch_waits_for_the_oldest_that_is_left() -> None:
    bench = Bench(wait_s=3.0, static_batching=True, max_num_seqs=4)
    bench.cancel(2.0, bench.arrive(0.0))
    bench.arrive(1.5)
    bench.run()
    assert bench.steps[0][0] == 4.5


# --- a client that leaves by itself --------------------------------------------------------------


@DEPTHS
def test_a_replica_cancels_a_request_when_its_client_leaves(depth: int) -> None:
    bench = Bench(depth=depth)
    leaves, stays = (bench.arrive(0, output=9, cancel_ns=round(at * SECOND)) for at in (3.5, 9.0))
    bench.run()
    assert end_of(bench, leaves) == (3.5, "cancelled", 3)
    assert end_of(bench, stays) == (9.0, "completed", 9)


def test_those_that_leave_at_one_instant_leave_by_row() -> None:
    bench = Bench(max_num_seqs=2)
    for at_s in (0.3, 0.2, 0.1):
        bench.arrive(at_s, output=9, cancel_ns=2 * SECOND)
    bench.run()
    assert bench.ends == [(2.0, row, "cancelled") for row in (0, 1, 2)]


# --- crash ---------------------------------------------------------------------------------------


@DEPTHS
def test_a_crash_loses_what_is_here_and_no_step_that_it_cut_is_written(depth: int) -> None:
    bench = Bench(depth=depth, max_num_seqs=2)
    for at_s in (0.2, 0.1, 0.3):
        bench.arrive(at_s, output=9)
    lost = bench.crash(3.55)
    seen: list[tuple[int, ...]] = []
    replica = bench.replica
    bench.at(
        3.55,
        Turn.ARRIVAL,
        lambda: seen.append(
            (replica.num_running, replica.num_waiting, replica.free_blocks, replica.outstanding_tokens)
        ),
    )
    bench.run()
    assert [request.row for request in lost] == [0, 1, 2]
    assert seen == [(0, 0, 1000, 0)]
    assert bench.ends == []
    assert all(ended <= 3.55 for _, ended, _ in bench.steps)
    assert len(bench.schedulers) == 2


@DEPTHS
def test_at_the_instant_of_a_steps_end_it_has_ended(depth: int) -> None:
    bench = Bench(depth=depth)
    bench.arrive(0, output=2)
    bench.arrive(0, output=9)
    lost = bench.crash(2.0)
    bench.run()
    assert bench.ends == [(2.0, 0, "completed")]
    assert [request.num_output_tokens for request in lost] == [2]
    assert max(ended for _, ended, _ in bench.steps) == 2.0


@DEPTHS
def test_it_is_back_at_once_and_empty(depth: int) -> None:
    """Host and accelerator are idle and nothing is cached: the same prompt is computed again."""
    bench = Bench(depth=depth)
    bench.arrive(0, prompt=64, output=9)
    bench.crash(2.5)
    again = bench.arrive(2.5, prompt=64, output=2)
    bench.requests[again].content = bench.requests[0].content
    bench.run()
    assert next(step for step in bench.steps if step[0] >= 2.5) == (2.5, 3.5, 64)
    assert end_of(bench, again) == (4.5, "completed", 2)


@DEPTHS
def test_an_idle_replica_may_crash_and_one_that_has_just_crashed(depth: int) -> None:
    bench = Bench(depth=depth)
    lost = [bench.crash(at_s) for at_s in (0.0, 1.0, 1.0)]
    row = bench.arrive(2.0, output=2)
    bench.run()
    assert lost == [[], [], []]
    assert end_of(bench, row) == (4.0, "completed", 2)


def test_a_client_that_would_have_left_after_the_crash_is_gone() -> None:
    bench = Bench()
    bench.arrive(0, output=9, cancel_ns=5 * SECOND)
    bench.crash(2.5)
    bench.run()
    assert bench.ends == []


# --- drain, step cost, ends ----------------------------------------------------------------------


def test_a_draining_replica_takes_nothing_new_and_ends_what_it_has() -> None:
    bench = Bench()
    replica = bench.replica
    bench.arrive(0, output=4)
    bench.at(1.5, Turn.CONTROL, replica.drain)
    bench.at(9.0, Turn.CONTROL, replica.undrain)
    late = bench.arrive(9.5, output=1)
    bench.env.run(until=2 * SECOND)
    assert replica.is_draining
    with pytest.raises(SimulationError, match="replica 0 drains, and request r1 was sent to it"):
        replica.submit(bench.requests[late])
    bench.run()
    assert bench.ends == [(4.0, 0, "completed"), (10.5, 1, "completed")]


@DEPTHS
def test_batches_in_flight_keep_their_cost_and_later_ones_have_the_new(depth: int) -> None:
    bench = Bench(depth=depth)
    bench.arrive(0, output=6)
    bench.at(1.5, Turn.FAULT, lambda: bench.replica.set_cost(slowed(ConstantCost(SECOND), 3)))
    bench.run()
    lengths = [ended - formed for formed, ended, tokens in bench.steps if tokens]
    assert bench.ends == [({1: 14.0, 2: 12.0}[depth], 0, "completed")]
    assert lengths[-1] == 3.0 * depth
    assert slowed(ConstantCost(SECOND), 1).kind == "constant"


def test_a_cost_of_other_stages_is_refused() -> None:
    bench = Bench()
    other = ConstantCost(SECOND)
    other.pipeline_stages = 2
    with pytest.raises(ValueError, match="2 stages in place of 1"):
        bench.replica.set_cost(other)


def test_a_watcher_may_come_and_go() -> None:
    bench = Bench()
    for output in (1, 2, 3):
        bench.arrive(0, output=output)
    bench.at(1.5, Turn.CONTROL, lambda: bench.replica.watch(None))
    bench.at(2.5, Turn.CONTROL, lambda: bench.replica.watch(bench.on_end))
    bench.run()
    assert [row for _, row, _ in bench.ends] == [0, 2]
    assert bench.attempts["row"].tolist() == [0, 1, 2]


# --- anything at any time ------------------------------------------------------------------------

KINDS: list[dict[str, Any]] = [
    {},
    {"depth": 2},
    {"depth": 2, "enable_prefix_caching": False, "max_num_seqs": 3},
    {"depth": 1, "enable_chunked_prefill": False, "max_num_batched_tokens": 4096, "policy": Priority},
    {"depth": 2, "max_num_batched_tokens": 48, "num_gpu_blocks": 25},
    {"depth": 1, "num_gpu_blocks": 25, "num_swap_blocks": 30, "policy": Priority},
    {"depth": 2, "num_gpu_blocks": 25, "num_swap_blocks": 30},
    {"depth": 1, "static_batching": True, "wait_s": 1.5, "max_num_seqs": 3},
    {"depth": 3, "num_gpu_blocks": 40, "pipeline_parallel_size": 3},
    {"depth": 2, "sliding_window": 32, "num_gpu_blocks": 40, "max_model_len": 400},
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(str(value) for value in kind.values()) or "plain")
@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_lost_or_left_whatever_happens_when(kind: dict[str, Any], seed: int) -> None:
    """Cancellations and crashes at random instants, half of them at those of steps: every request ends once."""
    rng = random.Random(seed)
    bench = Bench(**{"policy": Fcfs, **kind})
    crashes = sorted(rng.choice([rng.uniform(0, 30), rng.randint(0, 30)]) for _ in range(rng.randint(0, 3)))
    lost = [bench.crash(at_s) for at_s in crashes]
    for _ in range(30):
        at_s = rng.choice([rng.uniform(0, 25), rng.randint(0, 25)])
        patience = rng.choice([None, rng.randint(1, 20) * SECOND])
        cancel_ns = NEVER if patience is None else round(at_s * SECOND) + patience
        row = bench.arrive(
            at_s, prompt=rng.randint(1, 120), output=rng.randint(1, 15), cancel_ns=cancel_ns, priority=rng.randint(0, 2)
        )
        if rng.random() < 0.5:
            bench.cancel(at_s + rng.choice([rng.uniform(0, 15), rng.randint(0, 15)]), row)
    bench.run()
    rows_lost = [request.row for some in lost for request in some]
    attempts = bench.attempts
    assert sorted(rows_lost + attempts["row"].tolist()) == list(range(30))
    assert sorted(row for _, row, _ in bench.ends) == attempts["row"].tolist()
    for row, status, tokens in zip(*(attempts[n].tolist() for n in ("row", "status", "output_tokens")), strict=True):
        wanted = bench.requests[row]._stop_at_output_tokens
        assert tokens == wanted if status == Status.COMPLETED else tokens < wanted
    for formed, ended, _ in bench.steps:
        assert not any(formed < at_s < ended for at_s in crashes)
    assert {"cancelled", "completed"} >= {status for _, _, status in bench.ends}
    started = [request for request in bench.requests.values() if request.first_token_ns != NEVER]
    gaps_ns, weights = bench.recorder.itl_columns()
    assert weights.sum() == sum(request.num_output_tokens - 1 for request in started)
    assert (gaps_ns * weights).sum() == sum(request.last_token_ns - request.first_token_ns for request in started)
