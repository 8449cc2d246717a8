"""A sliding window in the memory plan and in what steps cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engines import engine_config
from hypothesis import given
from hypothesis import strategies as st

from sim.latency.base import StepShape
from sim.latency.gpus import GPUS
from sim.latency.memory import plan_memory
from sim.latency.model_spec import ModelSpec
from sim.latency.models import MODELS
from sim.latency.roofline import RooflineCost
from sim.latency.uniform import reshaped
from sim.latency.work import WorkModel
from sim.scenario.schema import EngineConfig

WINDOWED = MODELS["mistral-7b"]
FULL = replace(reshaped(WINDOWED, sliding_window=None), name="full")


def engine(**given: Any) -> EngineConfig:
    return engine_config(**{"model": "mistral-7b", "gpu": "a100-80gb-sxm", "max_model_len": 32768, **given})


def test_blocks_of_a_request_are_bounded_by_window_and_steps_in_flight() -> None:
    """4,095 tokens of window and 2 x 2,048 in flight are 512 blocks of 16, and one for where the window begins."""
    plan = plan_memory(engine(max_num_batched_tokens=2048, async_scheduling=True))
    assert (plan.sliding_window, plan.max_blocks_per_request) == (4096, 513)
    assert plan.max_concurrency == plan.num_gpu_blocks / 513
    assert plan.notes == ()
    full = plan_memory(engine(model="mistral-7b-v0.3"))
    assert (full.sliding_window, full.max_blocks_per_request) == (None, 2048)
    assert plan.kv_bytes_per_token == full.kv_bytes_per_token
    synchronous = plan_memory(engine(max_num_batched_tokens=2048, async_scheduling=False))
    assert synchronous.max_blocks_per_request == 385
    stages = plan_memory(engine(max_num_batched_tokens=2048, pipeline_parallel_size=4))
    assert stages.max_blocks_per_request == 769


def test_a_window_as_long_as_any_request_is_one_to_vllm() -> None:
    """4,096 tokens are 256 blocks of 16, and one for where the window begins."""
    plan = plan_memory(engine(max_model_len=4096))
    assert (plan.sliding_window, plan.max_blocks_per_request, plan.notes) == (4096, 257, ())


def test_a_pool_smaller_than_the_window_is_noted() -> None:
    (note,) = plan_memory(engine(max_num_batched_tokens=2048, num_gpu_blocks_override=513)).notes
    assert note.startswith("the KV cache holds 8192 tokens, fewer than the 8208 of a window of 4096")
    assert plan_memory(engine(max_num_batched_tokens=2048, num_gpu_blocks_override=514)).notes == ()


def test_kv_that_is_kept_all_the_same_is_noted() -> None:
    plan = plan_memory(engine(kv="contiguous"))
    assert (plan.sliding_window, plan.max_blocks_per_request) == (None, 2048)
    assert plan.notes == (
        "mistral-7b attends to a window of 4096 tokens, but KV behind it is kept: kv: contiguous reserves all of it",
    )
    speculative = {"method": "draft_model", "draft_model": "llama-2-7b", "num_speculative_tokens": 2, "acceptance": 0.5}
    drafted = plan_memory(engine(speculative=speculative))
    assert drafted.sliding_window is None
    assert drafted.notes[-1].endswith("the draft model looks further back")
    ngrams = {"method": "ngram", "num_speculative_tokens": 2, "acceptance": 0.5}
    assert plan_memory(engine(speculative=ngrams)).sliding_window == 4096


def roofline(model: ModelSpec) -> RooflineCost:
    return RooflineCost(model, GPUS["a100-80gb-sxm"], engine(max_num_batched_tokens=2048))


def decodes(num: int, context: int) -> StepShape:
    return StepShape(num_decodes=num, decode_context_tokens=num * context, num_sampled=num)


def chunk(prior: int) -> StepShape:
    return StepShape(
        num_prefills=1,
        num_prefill_tokens=512,
        prefill_context_tokens=prior + 512,
        prefill_attention_pairs=512 * (2 * prior + 512),
    )


def test_the_roofline_sees_no_more_than_the_window() -> None:
    windowed, full = roofline(WINDOWED), roofline(FULL)
    assert windowed.gpu_ns(decodes(8, 4096)) == full.gpu_ns(decodes(8, 4096))
    assert windowed.gpu_ns(decodes(8, 4096)) == windowed.gpu_ns(decodes(8, 30000)) < full.gpu_ns(decodes(8, 30000))
    assert windowed.gpu_ns(chunk(1000)) == full.gpu_ns(chunk(1000)) < windowed.gpu_ns(chunk(10000))
    assert windowed.gpu_ns(chunk(10000)) == windowed.gpu_ns(chunk(20000)) < full.gpu_ns(chunk(20000))
    terms = windowed.breakdown(decodes(8, 30000))
    assert sum(terms.values()) * 1e9 == pytest.approx(windowed.gpu_ns(decodes(8, 30000)), rel=1e-4)


@pytest.mark.parametrize("context", [100, 4090, 4096, 9000])
def test_a_run_of_decodes_is_its_steps(context: int) -> None:
    cost, first = roofline(WINDOWED), 5 * context + 3
    run = cost.decode_run_ns(5, first, 20).tolist()
    shapes = [replace(decodes(5, 0), decode_context_tokens=first + 5 * step) for step in range(20)]
    assert run == [cost.gpu_ns(shape) for shape in shapes]


@given(
    num=st.integers(0, 9),
    context=st.integers(0, 9000),
    steps=st.integers(1, 40),
    num_prefills=st.integers(0, 3),
)
def test_work_of_a_row_is_that_of_its_steps(num: int, context: int, steps: int, num_prefills: int) -> None:
    """However steps are grouped into rows, FLOPs and bytes are the same."""
    work = WorkModel(WINDOWED, GPUS["a100-80gb-sxm"], engine())
    rows = {
        "num_steps": [steps],
        "num_prefills": [num_prefills],
        "num_prefill_tokens": [num_prefills * 100],
        "prefill_context_tokens": [num_prefills * 6000],
        "prefill_attention_pairs": [num_prefills * 100 * 11900],
        "num_decodes": [num],
        "decode_context_tokens": [num * context],
        "num_sampled": [num],
    }
    single = {name: values * steps for name, values in rows.items()}
    single["num_steps"] = [1] * steps
    single["decode_context_tokens"] = [num * (context + step) for step in range(steps)]
    one, many = ({name: np.array(values, dtype=np.int64) for name, values in each.items()} for each in (rows, single))
    assert work.total_flops(one) == work.total_flops(many)
    assert work.total_bytes(one) == work.total_bytes(many)
    assert work.flops(one)[0] == pytest.approx(work.flops(many).sum())
    assert work.bytes(one)[0] == pytest.approx(work.bytes(many).sum())
    if num:
        seen = sum(min(context + step, 4096) for step in range(steps)) * num
        unbounded = WorkModel(FULL, GPUS["a100-80gb-sxm"], engine())
        lost = num * sum(context + step for step in range(steps)) - seen
        if not num_prefills:
            assert unbounded.total_bytes(many) - work.total_bytes(many) == lost * work.kv_bytes_per_token
