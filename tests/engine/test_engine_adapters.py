"""LoRA adapters in admission: how many a step may hold, which are in slots, and what a step is told of them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from engine_driver import Driver, make_request

import sim


def served(lora: int, row: int, output: int = 5, **more: Any) -> Any:
    return make_request(row, 16, output, lora=lora, **more)


def test_a_request_waits_until_its_adapter_has_a_place_and_others_pass_it() -> None:
    driver = Driver(max_loras=1)
    driver.add(served(1, 0), served(2, 1), served(0, 2), served(1, 3))
    steps = driver.run()
    assert set(steps[0]) == {"r0", "r2", "r3"}, "the base model needs no place, and adapter 1 has one"
    assert [name for step in steps for name in step].index("r1") > 0
    first = next(index for index, step in enumerate(steps) if "r1" in step)
    assert all("r0" not in step and "r3" not in step for step in steps[first:])


def test_without_adapters_nothing_is_counted() -> None:
    driver = Driver()
    driver.add(*(served(0, row) for row in range(4)))
    driver.run()
    assert {batch.shape.num_loras + batch.shape.lora_load_bytes for batch in driver.batches} == {0}


def test_slots_keep_what_was_used_last() -> None:
    driver = Driver(max_loras=2, max_cpu_loras=3, lora_bytes=100)
    loads = []
    for row, lora in enumerate((1, 2, 1, 3, 1, 2, 3, 4, 1)):
        driver.add(served(lora, row, output=1))
        before = len(driver.batches)
        driver.run()
        shapes = [batch.shape for batch in driver.batches[before:]]
        loads.append((sum(shape.lora_load_bytes for shape in shapes), sum(shape.num_lora_reads for shape in shapes)))
    # 3 takes 2's slot, 2 that of 3, 3 that of 1; 4 is the fourth and drops 1 from memory, which is read again.
    assert [each[0] // 100 for each in loads] == [1, 1, 0, 1, 0, 1, 1, 1, 1]
    assert [each[1] for each in loads] == [1, 1, 0, 1, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("seed", range(20))
def test_no_step_holds_more_adapters_than_it_may(seed: int) -> None:
    rng = random.Random(seed)
    most = rng.choice([1, 2, 3])
    driver = Driver(max_loras=most, max_num_seqs=rng.choice([2, 4, 16]), async_scheduling=rng.random() < 0.5)
    for row in range(30):
        driver.add(served(rng.randrange(6), row, output=rng.randint(1, 20)))
        for _ in range(rng.randrange(4)):
            driver.one_step()
    driver.run()
    assert len(driver.finished) == 30
    held = []
    for batch in driver.batches:
        adapters = {request.lora for request in batch.scheduled} - {0}
        tokens = sum(count for request, count in batch.scheduled.items() if request.lora)
        assert (batch.shape.num_loras, batch.shape.num_lora_tokens) == (len(adapters), tokens)
        held.append(len(adapters))
    assert max(held) == min(most, driver.scheduler.settings.max_num_seqs)


ENGINE = {"model": "llama-3.1-8b", "gpu": "a100-80gb-sxm", "enable_lora": True, "max_loras": 2}
WORKLOAD = {
    "requests": 60,
    "arrival": {"process": "poisson", "rate": 4},
    "input_tokens": {"dist": "fixed", "value": 300},
    "output_tokens": {"dist": "fixed", "value": 40},
    "lora": {"adapters": 5, "skew": 1},
}


def run(workload: dict[str, Any] | None = None, **engine: Any) -> Any:
    return sim.simulate({"name": "x", "workload": workload or WORKLOAD, "engine": {**ENGINE, **engine}})


def test_a_run_serves_all_and_says_what_adapters_cost() -> None:
    results = run()
    assert results.summary["counts"]["completed"] == 60
    assert {"lora", "lora_load"} <= results.summary["error"]["terms"].keys()
    steps = results.steps
    assert steps["num_loras"].max() == 2
    assert (steps["num_lora_tokens"] <= steps["num_prefill_tokens"] + steps["num_decodes"]).all()


def test_more_slots_make_the_queue_shorter_and_none_costs_nothing() -> None:
    few, many = run().summary, run(max_loras=8).summary
    assert few["utilization"]["adapter_usage"] > many["utilization"]["adapter_usage"] > 0
    assert few["utilization"]["adapter_loads"] > many["utilization"]["adapter_loads"] == 5
    assert many["queue"]["mean_queue_ms"] < few["queue"]["mean_queue_ms"]
    plain = {key: value for key, value in WORKLOAD.items() if key != "lora"}
    with_slots, without = run(plain).summary, run(plain, enable_lora=False, max_loras=1).summary
    assert with_slots["mean_e2el_ms"] == without["mean_e2el_ms"]
    assert with_slots["kv"]["num_gpu_blocks"] < without["kv"]["num_gpu_blocks"]
