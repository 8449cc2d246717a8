"""KV memory that is taken and holds no token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engines import any_block

import sim
from sim.results.fragmentation import _sum_of_unused, _unused


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("reserved", [0, 100, 101])
def test_sums_equal_adding_up(block_size: int, reserved: int) -> None:
    tokens = np.arange(1, 100)
    assert (
        _sum_of_unused(tokens, block_size, reserved).tolist()
        == np.cumsum(_unused(tokens, block_size, reserved)).tolist()
    )


def kv_of(output: int = 9, **engine: Any) -> dict[str, Any]:
    scenario = {
        "name": "one",
        "workload": {
            "requests": 1,
            "arrival": {"process": "burst"},
            "input_tokens": {"dist": "fixed", "value": 40},
            "output_tokens": {"dist": "fixed", "value": output},
        },
        "engine": any_block(
            {
                "model": "llama-2-7b",
                "gpu": "a100-80gb-sxm",
                "num_gpu_blocks_override": 101,
                "max_model_len": 160,
                "async_scheduling": False,
                **engine,
            }
        ),
        "latency": {"kind": "constant", "step_s": 1.0},
    }
    kv: dict[str, Any] = sim.simulate(scenario).summary["kv"]
    return kv


@pytest.mark.parametrize("stepping", ["fast", "reference"])
def test_one_request_by_hand(stepping: str) -> None:
    """40 tokens in 3 blocks of 16: 8 places unused for a second, then 7, 6, ... 0, a second each; 3 blocks held."""
    kv = kv_of(stepping=stepping)
    assert kv["mean_unused_slots"] == pytest.approx((8 + sum(range(8))) / 9)
    assert kv["fragmentation"] == pytest.approx((8 + sum(range(8))) / 9 / 48)


def test_contiguous_kv_wastes_what_paging_does_not() -> None:
    """160 places are reserved for 40 to 48 tokens."""
    kv = kv_of(kv="contiguous", enable_prefix_caching=False)
    assert kv["fragmentation"] == pytest.approx(1 - np.mean([40, *range(41, 49)]) / 160)
    assert kv["fragmentation"] > 5 * kv_of()["fragmentation"]


def test_blocks_of_one_token_waste_nothing() -> None:
    assert kv_of(block_size=1, num_gpu_blocks_override=161)["fragmentation"] == 0


def test_a_request_rejected_or_with_one_token_only() -> None:
    assert kv_of(output=1)["mean_unused_slots"] == pytest.approx(8)
    none = kv_of(num_gpu_blocks_override=2)
    assert none["mean_unused_slots"] is None
    assert none["fragmentation"] is None
