"""The constant step cost."""

from __future__ import annotations

from sim.latency.base import StepShape
from sim.latency.constant import ConstantCost


def test_every_step_takes_the_same() -> None:
    cost = ConstantCost(1_000)
    full = StepShape(num_prefills=1, num_prefill_tokens=512, num_decodes=8, decode_context_tokens=9_000, num_sampled=9)
    assert cost.gpu_ns(full) == cost.gpu_ns(StepShape()) == cost.empty_step_ns() == 1_000
    assert cost.host_ns(full) == 0
    assert cost.decode_run_ns(4, 100, 3).tolist() == [1_000] * 3
    assert cost.decode_run_ns(4, 100, 0).tolist() == []
    assert cost.pipeline_stages == 1


def test_describes_itself_as_what_it_is() -> None:
    described = ConstantCost(50_000_000).describe()
    assert (described["kind"], described["estimate"], described["step_s"]) == ("constant", False, 0.05)


def test_time_always_advances() -> None:
    assert ConstantCost(0).gpu_ns(StepShape()) == 1
