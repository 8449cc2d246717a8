"""Noise of clients and steps: which there is, what is drawn, and what a run shows of it."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest

import sim
from sim.cluster.deployment import resolve_deployment
from sim.errors import InputError
from sim.latency.fitted import Fitted
from sim.latency.noise import LATE_MEAN_MS, LATE_SHARE, ClientNoise, Noise, StepNoise, noise_of
from sim.results.results import Results
from sim.run import load

DEFAULT = ClientNoise(LATE_SHARE, round(LATE_MEAN_MS * 1e6))


def scenario(latency: dict[str, Any] | None = None, **workload: Any) -> dict[str, Any]:
    return {
        "name": "noisy",
        "seed": 2,
        "workload": {
            "requests": 400,
            "arrival": {"process": "poisson", "rate": 20.0},
            "input_tokens": {"dist": "uniform", "low": 10, "high": 400},
            "output_tokens": {"dist": "uniform", "low": 2, "high": 60},
            **workload,
        },
        "engine": {"model": "llama-3.1-8b", "gpu": "h100-sxm", "max_num_seqs": 32},
        "latency": latency or {},
    }


def noise(latency: dict[str, Any], values: dict[str, float] | None = None) -> Noise:
    loaded = load(scenario(latency)).scenario
    fitted = None if values is None else Fitted("profile", "h100-sxm", values)
    return noise_of(loaded.engine.gpu, loaded.latency, fitted)


def columns(results: Results, name: str) -> np.ndarray[Any, Any]:
    return np.asarray(results.record.requests[name])


def test_which_noise_there_is() -> None:
    assert noise({}) == Noise(DEFAULT)
    assert noise({"kind": "profile"}) == Noise(DEFAULT)
    assert noise({"kind": "roofline"}) == noise({"kind": "constant", "step_s": 1.0}) == Noise()
    assert noise({"client_overhead_ms": 7.0}) == Noise()
    assert noise({"noise": "none"}) == Noise()
    assert noise({"noise": {"client": {"share": 0, "mean_ms": 5}}}) == Noise()
    stated = {"client": {"share": 0.5, "mean_ms": 3}, "step": {"every_s": 2, "for_s": 0.25, "factor": 1.5}}
    expected = Noise(ClientNoise(0.5, 3_000_000), StepNoise(2_000_000_000, 250_000_000, 1.5))
    assert noise({"kind": "roofline", "noise": stated}) == expected
    assert noise({"noise": {"step": stated["step"]}}) == Noise(DEFAULT, expected.step)
    assert noise({"client_overhead_ms": 7.0}, {"client_ms": 9.0}) == Noise(DEFAULT)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("some", "must be one of none"),
        ({"client": {"share": 1.5, "mean_ms": 1}}, "from 0 to 1"),
        ({"client": {"share": 0.5}}, "mean_ms"),
        ({"step": {"every_s": 0, "for_s": 1, "factor": 2}}, "at least 0.001"),
        ({"step": {"every_s": 1, "for_s": 1, "factor": 0.5}}, "at least 1"),
        ({"steps": {}}, "unknown key `steps` in `latency.noise`"),
    ],
)
def test_what_noise_cannot_be(told: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(scenario({"noise": told}))


def test_draws() -> None:
    late = ClientNoise(0.1, 5_000_000)
    drawn = late.draw(3, 200_000)
    assert np.array_equal(drawn, late.draw(3, 200_000))
    assert not np.array_equal(drawn, late.draw(4, 200_000))
    assert np.mean(drawn > 0) == pytest.approx(0.1, rel=0.03)
    assert drawn.mean() == pytest.approx(late.added_ns, rel=0.03)
    assert np.percentile(drawn[drawn > 0], 90) == pytest.approx(5_000_000 * np.log(10), rel=0.03)
    step = StepNoise(2_000_000, 500_000, 1.5)
    spells = np.array(list(islice(step.spells(3, 0), 20_000)))
    assert spells.mean(axis=0) == pytest.approx([2_000_000, 500_000], rel=0.03)
    assert list(islice(step.spells(3, 0), 5)) != list(islice(step.spells(3, 1), 5))


def test_late_requests_are_late_for_their_clients_alone() -> None:
    plain, noisy = (sim.simulate(scenario({"noise": told})) for told in ("none", {}))
    late_ns = DEFAULT.draw(2, 400)
    assert 2 <= np.count_nonzero(late_ns) <= 20
    for name in ("first_token_ns", "finish_ns"):
        expected = columns(plain, name) - DEFAULT.added_ns + late_ns
        assert np.array_equal(columns(noisy, name), expected), name
    for name, column in plain.record.steps.items():
        assert np.array_equal(noisy.record.steps[name], column), name
    assert noisy.summary["mean_tpot_ms"] == plain.summary["mean_tpot_ms"]
    assert noisy.summary["run"]["latency"]["client_overhead_ms"] == 4
    assert noisy.summary["run"]["latency"]["client_token_us"] == 2
    assert noisy.summary["run"]["latency"]["noise"]["client"] == {"share": LATE_SHARE, "mean_ms": LATE_MEAN_MS}


def test_the_mean_stays() -> None:
    told = scenario({"noise": {"client": {"share": 0.1, "mean_ms": 20}}}, requests=20_000)
    plain = sim.simulate(scenario({"noise": "none"}, requests=20_000)).summary
    noisy = sim.simulate(told).summary
    assert noisy["mean_ttft_ms"] == pytest.approx(plain["mean_ttft_ms"], abs=0.2)
    assert noisy["p99_ttft_ms"] > plain["p99_ttft_ms"] + 15


def test_the_next_request_of_a_closed_loop_waits_for_a_late_client() -> None:
    loop = {"process": "closed_loop", "concurrency": 1}
    told = {"client_overhead_ms": 5, "noise": {"client": {"share": 0.2, "mean_ms": 10}}}
    seen = sim.simulate(scenario(told, arrival=loop, requests=50))
    late_ns = ClientNoise(0.2, 10_000_000).draw(2, 50)
    assert late_ns.any()
    assert np.array_equal(columns(seen, "arrival_ns")[1:], columns(seen, "finish_ns")[:-1])
    plain = sim.simulate(scenario({"client_overhead_ms": 3}, arrival=loop, requests=50))
    assert columns(seen, "finish_ns")[-1] - columns(plain, "finish_ns")[-1] == late_ns.sum()


def test_outputs_of_one_prompt_are_late_together() -> None:
    told = {"client_overhead_ms": 5, "noise": {"client": {"share": 0.5, "mean_ms": 10}}}
    fixed = {"dist": "fixed", "value": 8}
    seen = sim.simulate(scenario(told, n=2, requests=40, output_tokens=fixed))
    plain = sim.simulate(scenario({"client_overhead_ms": 0}, n=2, requests=40, output_tokens=fixed))
    behind = (columns(seen, "finish_ns") - columns(plain, "finish_ns")).reshape(-1, 2)
    assert np.array_equal(behind[:, 0], behind[:, 1])
    assert len(np.unique(behind)) > 10


def test_a_client_who_leaves_is_late_too() -> None:
    told = {"kind": "constant", "step_s": 0.01, "noise": {"client": {"share": 0.5, "mean_ms": 300}}}
    seen = sim.simulate(scenario(told, patience_s=0.4, output_tokens={"dist": "fixed", "value": 10}))
    counts = seen.summary["counts"]
    assert counts["cancelled"] > 20
    done = columns(seen, "finish_ns") >= 0
    assert np.all((columns(seen, "finish_ns") - columns(seen, "arrival_ns"))[done] <= 400_000_000)


def test_a_deployment_parts_the_mean() -> None:
    loaded = load(scenario({"client_overhead_ms": 1, "noise": {"client": {"share": 0.5, "mean_ms": 10}}})).scenario
    deployment = resolve_deployment(loaded.engine, loaded.latency)
    assert (deployment.client_overhead_ns, deployment.client_constant_ns) == (1_000_000, 0)


SPELLS = {"every_s": 2.0, "for_s": 0.5, "factor": 2.0}


def test_spells_make_steps_longer_now_and_then() -> None:
    plain, noisy = (
        sim.simulate(scenario({"kind": "constant", "step_s": 0.01, "noise": told}))
        for told in ("none", {"step": SPELLS})
    )
    assert set(np.unique(noisy.record.itl_ns)) == {10_000_000, 20_000_000}
    assert noisy.summary["mean_itl_ms"] == pytest.approx(10 + 10 * 0.5 / 2.5, rel=0.1)
    assert plain.summary["p99_itl_ms"] == 10
    assert noisy.summary["p99_itl_ms"] == 20
    # Spells go on until the last request has ended, and no further.
    assert noisy.summary["duration"] < 2 * plain.summary["duration"]


def test_spells_come_to_each_replica_on_its_own() -> None:
    told = scenario({"kind": "constant", "step_s": 0.01, "noise": {"step": SPELLS}})
    one, two = (sim.simulate({**told, "cluster": {"replicas": count}}) for count in (1, 2))
    slow = []
    for results, index in ((one, 0), (two, 0), (two, 1)):
        steps = results.record.steps
        mine = (steps["replica"] == index) & (steps["gpu_ns"] > 10_000_000 * steps["num_steps"])
        slow.append({int(at // 10**9) for at in steps["start_ns"][mine].tolist()})
    assert slow[1] <= slow[0]
    assert slow[1] != slow[2]


def test_spells_do_not_keep_a_finished_run_alive() -> None:
    """Long after the last arrival, in a closed loop that ends by time, and where nothing ever arrives."""
    told = {"kind": "constant", "step_s": 0.01, "noise": {"step": {"every_s": 0.5, "for_s": 0.1, "factor": 3}}}
    loop = {"arrival": {"process": "closed_loop", "concurrency": 2}, "duration_s": 5.0, "requests": None}
    for more in ({"requests": 1}, loop, {"sessions": {"turns": 3, "think_time_s": 2.0}}):
        assert sim.simulate(scenario(told, **more)).summary["completed"] > 0
