"""What an output token costs beside a prompt token, as policies that rank by expected work take it by default."""

from __future__ import annotations

import pytest
from engines import SIZES

from sim.latency.base import StepShape
from sim.latency.build import build_step_cost
from sim.latency.constant import ConstantCost
from sim.latency.memory import plan_memory
from sim.latency.token_weight import prompt_tokens_per_output_token, token_weight
from sim.run import load

LIMITS = {"max_num_batched_tokens": 2048, "max_model_len": 4096, "kv_capacity_tokens": 100_000}


class LinearCost(ConstantCost):
    """1 us a prompt token; a decode 50 us and 10 ns for each token of its context."""

    def gpu_ns(self, shape: StepShape) -> int:
        return 1_000 * shape.num_prefill_tokens + 50_000 * shape.num_decodes + 10 * shape.decode_context_tokens


@pytest.mark.parametrize(("seats", "weight"), [(1, 2048), (2, 1024), (64, 32), (1000, 2), (5000, 1)])
def test_equal_steps_are_shared_by_the_seats(seats: int, weight: int) -> None:
    assert prompt_tokens_per_output_token(ConstantCost(7), max_num_seqs=seats, **LIMITS) == weight


def test_a_decode_has_half_the_context_of_a_prompt_or_of_its_seat() -> None:
    """50 us and, at 1,024 tokens, 10.24; at half of a seat's 500, 2.5; at half of a prompt of 300, 1.5."""
    cost = LinearCost(1)
    assert prompt_tokens_per_output_token(cost, max_num_seqs=4, **LIMITS) == 60
    assert (
        prompt_tokens_per_output_token(cost, max_num_seqs=200, **{**LIMITS, "kv_capacity_tokens": 100_000}) == 53
    )  # 52.5
    assert prompt_tokens_per_output_token(cost, max_num_seqs=4, **{**LIMITS, "max_model_len": 300}) == 52


@pytest.mark.parametrize(("seats", "weight"), [(64, 8), (256, 3)])
def test_the_docstrings_example(seats: int, weight: int) -> None:
    loaded = load(
        {
            "name": "weight",
            "workload": {
                "requests": 1,
                "arrival": {"process": "burst"},
                **{key: {"dist": "fixed", "value": 9} for key in ("input_tokens", "output_tokens")},
            },
            "engine": {"model": "llama-3.1-8b", "gpu": "h100-sxm", **SIZES, "max_num_seqs": seats},
        }
    )
    engine = loaded.scenario.engine
    cost = build_step_cost(engine, loaded.scenario.latency, loaded.base_dir)
    assert token_weight(engine, cost, plan_memory(engine, loaded.base_dir)) == weight
