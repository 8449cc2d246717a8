"""Experts as an engine meets them: few ones chosen by tokens on their own, curves that do not fall."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from gpu_calibrate.importers.expert_tables import routed
from gpu_calibrate.importers.pooled_falls import pool_falls

READ_MS = {1: 0.10, 2: 0.20, 4: 0.40, 8: 0.40, 16: 0.44}
"""Of 2 of 8 experts laid out evenly: 0.05 ms for each one touched, then a little arithmetic."""


def rows(distribution: str, times: dict[int, float], num_experts: int = 8, chosen: int = 2) -> list[dict[str, Any]]:
    shape = {"hidden_size": 4096, "inter_size": 14336, "num_experts": num_experts, "topk": chosen}
    return [
        {
            **shape,
            **{"moe_tp_size": 2, "moe_ep_size": 1, "moe_dtype": "bfloat16", "distribution": distribution},
            **{"num_tokens": tokens, "latency": latency},
        }
        for tokens, latency in times.items()
    ]


def table(*parts: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([row for part in parts for row in part])


def test_tokens_that_choose_by_themselves_leave_some_of_few_experts_unread() -> None:
    """Four tokens touch 8 (1 - 0.75^4) = 5.5 of 8 experts, not all of them."""
    found, notes = routed(table(rows("power_law_1.01", {8: 0.9, 16: 0.3}), rows("balanced", READ_MS)))
    times = dict(zip(found["num_tokens"], found["latency"], strict=True))
    for tokens, laid_out in READ_MS.items():
        touched = 8 * (1 - 0.75**tokens)
        assert times[tokens] == pytest.approx(laid_out * touched / min(8, 2 * tokens), rel=1e-6), tokens
    assert times[1] == 0.10
    assert set(found["distribution"]) == {"balanced"}
    assert "moe: 5 rows of up to 16 experts are routed evenly, each token choosing by itself" in notes


def test_many_experts_stay_as_they_were_drawn() -> None:
    drawn = rows("power_law_1.01", {8: 0.3}, num_experts=128, chosen=8)
    found, notes = routed(table(drawn, rows("balanced", {8: 0.5}, num_experts=128, chosen=8)))
    assert found["latency"].tolist() == [0.3]
    assert notes == ("moe: routing power_law_1.01; 1 rows of other distributions left out",)


def test_drawn_tokens_touch_no_more_of_many_experts_than_tokens_by_themselves() -> None:
    """Eight tokens that choose 8 of 256 touch 57 experts at most in the mean, where a draw laid out 64."""
    even = rows("balanced", {4: 0.064, 8: 0.128, 16: 0.256}, num_experts=256, chosen=8)
    found, notes = routed(table(rows("power_law_1.01", {8: 0.128}, num_experts=256, chosen=8), even))
    touched = 256 * (1 - (1 - 8 / 256) ** 8)
    assert found["latency"].tolist() == pytest.approx([0.064 * touched / 32], rel=1e-6)
    assert "moe: 1 drawn rows at the time of as many experts as tokens touch by themselves" in notes


def test_of_whole_experts_the_busiest_gpu_counts() -> None:
    """Of 57 experts that 8 tokens touch, the busiest of 8 GPUs has more than an eighth, and no more than all it has."""
    even = [
        {**each, "moe_tp_size": 1, "moe_ep_size": 8}
        for each in rows("balanced", {4: 0.004, 8: 0.008, 16: 0.016, 32: 0.032}, num_experts=256, chosen=8)
    ]
    drawn = [{**each, "distribution": "power_law_1.01", "latency": 1.0} for each in even if each["num_tokens"] == 8]
    found, _ = routed(table(drawn, even))
    (latency,) = found["latency"].tolist()
    assert 57 / 8 * 0.001 < latency < 12 * 0.001


def test_many_rows_for_each_expert_stay_as_they_were_drawn() -> None:
    """From two rows an expert on time is arithmetic's, which an uneven draw lengthens rightly."""
    even = rows("balanced", {64: 0.2, 128: 0.3}, num_experts=256, chosen=8)
    found, _ = routed(table(rows("power_law_1.01", {128: 0.5}, num_experts=256, chosen=8), even))
    assert found["latency"].tolist() == [0.5]


def test_few_experts_without_even_rows_stay_as_they_were_drawn() -> None:
    found, _ = routed(table(rows("power_law_1.01", {8: 0.3}), rows("power_law_1.2", {8: 0.2})))
    assert found["latency"].tolist() == [0.3]


def test_a_table_without_drawn_rows_is_taken_as_it_is() -> None:
    found, notes = routed(table(rows("balanced", {8: 0.5})))
    assert (found["latency"].tolist(), notes) == ([0.5], ())


def test_one_high_point_does_not_lift_what_follows() -> None:
    """Measured of Mixtral, two GPUs: 0.571 ms at 8 tokens between 0.246 and 0.489."""
    found = pool_falls(np.array([0.246, 0.571, 0.489, 0.524, 0.517, 0.561]))
    assert (np.diff(found) >= 0).all()
    assert found[1] == found[4] == pytest.approx((0.517 * 0.524) ** 0.5)
    assert found[0] == 0.246
    assert found[-1] == 0.561


def test_a_run_of_outliers_among_more_points_does_not_count() -> None:
    found = pool_falls(np.array([9.4, 25.8, 26.1, 10.2, 10.4, 11.0, 11.1, 12.0, 40.0]))
    assert found.max(initial=0, where=np.arange(9) < 8) < 13
    assert found[-1] == 40.0


def test_a_curve_that_rises_stays_as_it_is() -> None:
    times = np.array([1.0, 1.0, 1.7, 3.3])
    assert pool_falls(times).tolist() == times.tolist()
