"""How many batches an engine has in flight at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.scenario.schema import EngineConfig


def is_asynchronous(engine: EngineConfig) -> bool:
    """Whether the engine schedules one step ahead. The baselines and pipeline parallelism do not."""
    return (
        engine.async_scheduling
        and engine.pipeline_parallel_size == 1
        and engine.preemption == "recompute"
        and engine.batching == "continuous"
        and engine.kv == "paged"
        # vLLM schedules n-grams synchronously: they are found on the host, in tokens that have to be there.
        and (engine.speculative is None or engine.speculative.method != "ngram")
    )


def pipeline_depth(engine: EngineConfig) -> int:
    """Batches in flight (``VllmConfig.max_concurrent_batches``)."""
    return 2 if is_asynchronous(engine) else engine.pipeline_parallel_size
