"""A block that the fast engine loses fails the run, and the message names the request."""

from __future__ import annotations

from typing import Any

import pytest

from sim.engine.fast.segments import SegmentKVCache
from sim.errors import SimulationError
from sim.run import load, run


def crowd(**workload: Any) -> dict[str, Any]:
    """Three requests at once, two of which run together."""
    lengths = {"input_tokens": {"dist": "fixed", "value": 8}, "output_tokens": {"dist": "fixed", "value": 40}}
    engine = {"model": "llama-2-7b", "gpu": "a100-80gb-sxm", "max_num_seqs": 2}
    more = {"requests": 3, "arrival": {"process": "burst"}, **lengths, **workload}
    return {"name": "leak", "workload": more, "engine": engine, "latency": {"kind": "constant", "step_s": 1.0}}


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the cache forget to free what a request has."""

    def forget_of(request_id: str) -> None:
        real = SegmentKVCache.free

        def forgetful(self: SegmentKVCache, member: Any, *args: Any, **more: Any) -> None:
            if member.request_id != request_id:
                real(self, member, *args, **more)

        monkeypatch.setattr(SegmentKVCache, "free", forgetful)

    return forget_of


@pytest.mark.parametrize("prefix", [None, {"groups": 1, "tokens": 8}])
def test_a_leaked_block_names_its_holder(forget: Any, prefix: Any) -> None:
    forget("1")
    with pytest.raises(SimulationError, match=r"leaked.*'1'"):
        run(load(crowd(prefix=prefix)))


def test_a_leak_of_a_request_that_was_cancelled_names_it(forget: Any) -> None:
    patient = crowd(patience_s=50.0)
    record = run(load(patient)).record
    assert record.requests["status"].tolist() == [0, 0, 4]
    forget("2")
    with pytest.raises(SimulationError, match=r"leaked.*'2'"):
        run(load(patient))


def test_blocks_that_no_request_holds_are_said_to_be_unknown() -> None:
    cache = SegmentKVCache(10, 4, caches=True)
    cache.take(2)
    with pytest.raises(SimulationError, match="7 of 9 are free at the end; still held by request: unknown"):
        cache.check_empty()
