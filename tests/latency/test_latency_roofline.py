"""The roofline: physics in the right direction, never beating the datasheet, and known orders of magnitude."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from engines import engine_config
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.latency.base import StepShape
from sim.latency.gpus import GPUS, GpuSpec
from sim.latency.models import MODELS
from sim.latency.operators import distinct_experts, power
from sim.latency.roofline import RooflineCost
from sim.latency.work import WorkModel

VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {"model": "llama-2-7b", "gpu": "a100-80gb-sxm"},
    "gqa-tp": {"model": "llama-3.1-8b", "gpu": "h100-sxm", "tensor_parallel_size": 4, "dtype": "fp8"},
    "pcie-pp": {"model": "qwen3-14b", "gpu": "l40s", "tensor_parallel_size": 2, "pipeline_parallel_size": 3},
    "moe": {"model": "qwen3-30b-a3b", "gpu": "h200-sxm", "kv_cache_dtype": "fp8"},
    "moe-tp": {"model": "mixtral-8x7b", "gpu": "h100-sxm", "tensor_parallel_size": 2},
    "eager": {"model": "llama-3.2-1b", "gpu": "rtx-4090", "enforce_eager": True},
    "fp32": {"model": "llama-3.2-3b", "gpu": "rtx-pro-6000", "dtype": "float32"},
    "int4": {"model": "mistral-nemo-12b", "gpu": "a100-40gb-sxm", "dtype": "int4"},
}


def make(
    hardware: GpuSpec | None = None, host_overhead_ms: float | None = None, **engine_settings: Any
) -> RooflineCost:
    engine = engine_config(**({"model": "llama-2-7b", "gpu": "a100-80gb-sxm"} | engine_settings))
    model = MODELS[engine.model]
    return RooflineCost(model, hardware or GPUS[engine.gpu], engine, host_overhead_ms=host_overhead_ms)


@cache
def variant(name: str) -> RooflineCost:
    return make(**VARIANTS[name])


def decode(num: int, context: int) -> StepShape:
    return StepShape(num_decodes=num, decode_context_tokens=num * context, num_sampled=num)


def prefill(chunk: int, prior: int = 0) -> StepShape:
    return StepShape(
        num_prefills=1,
        num_prefill_tokens=chunk,
        prefill_context_tokens=prior + chunk,
        prefill_attention_pairs=chunk * (2 * prior + chunk),
        num_sampled=1,
    )


def shape_of(chunks: list[tuple[int, int]], decodes: list[int]) -> StepShape:
    return StepShape(
        num_prefills=len(chunks),
        num_prefill_tokens=sum(chunk for _, chunk in chunks),
        prefill_context_tokens=sum(prior + chunk for prior, chunk in chunks),
        prefill_attention_pairs=sum(chunk * (2 * prior + chunk) for prior, chunk in chunks),
        num_decodes=len(decodes),
        decode_context_tokens=sum(decodes),
        num_sampled=len(chunks) + len(decodes),
    )


CHUNK_LISTS = st.lists(st.tuples(st.integers(0, 8000), st.integers(1, 3000)), max_size=4)
DECODE_LISTS = st.lists(st.integers(1, 20_000), max_size=40)
names = st.sampled_from(list(VARIANTS))


@given(name=names, chunks=CHUNK_LISTS, decodes=DECODE_LISTS, extra=st.integers(1, 5000), prior=st.integers(0, 5000))
@settings(deadline=None)
def test_more_work_is_never_cheaper(
    name: str, chunks: list[tuple[int, int]], decodes: list[int], extra: int, prior: int
) -> None:
    cost = variant(name)
    base = cost.gpu_ns(shape_of(chunks, decodes))
    assert base >= 1
    assert cost.gpu_ns(shape_of([*chunks, (prior, extra)], decodes)) >= base
    assert cost.gpu_ns(shape_of(chunks, [*decodes, extra])) >= base
    assert cost.gpu_ns(shape_of(chunks, [context + extra for context in decodes])) >= base
    assert cost.gpu_ns(shape_of([(first + extra, chunk) for first, chunk in chunks], decodes)) >= base
    assert cost.gpu_ns(shape_of([(first, chunk + extra) for first, chunk in chunks], decodes)) >= base


@given(name=names, decodes=st.integers(0, 600), context=st.integers(0, 10**7), steps=st.integers(0, 30))
@settings(deadline=None)
def test_a_run_equals_its_steps_bit_for_bit(name: str, decodes: int, context: int, steps: int) -> None:
    cost = variant(name)
    assert cost.decode_run_ns(decodes, context, steps).tolist() == [
        cost.gpu_ns(StepShape(num_decodes=decodes, decode_context_tokens=context + i * decodes, num_sampled=decodes))
        for i in range(steps)
    ]


@given(name=names, chunks=CHUNK_LISTS, decodes=DECODE_LISTS)
@settings(deadline=None)
def test_no_step_beats_the_datasheet(name: str, chunks: list[tuple[int, int]], decodes: list[int]) -> None:
    cost = variant(name)
    shape = shape_of(chunks, decodes)
    engine = engine_config(**VARIANTS[name])
    work = WorkModel(cost.model, cost.gpu, engine)
    columns = {
        field: np.array([getattr(shape, field)])
        for field in (
            *("num_prefill_tokens", "num_decodes", "decode_context_tokens", "prefill_context_tokens"),
            *("prefill_attention_pairs", "num_sampled"),
        )
    }
    seconds = (cost.gpu_ns(shape) + 2) / 1e9
    assert work.flops(columns)[0] / work.peak_flops <= seconds
    assert work.bytes(columns)[0] / work.peak_bandwidth <= seconds


@given(name=names, chunks=CHUNK_LISTS, decodes=DECODE_LISTS)
@settings(deadline=None, max_examples=50)
def test_terms_add_up_to_the_step(name: str, chunks: list[tuple[int, int]], decodes: list[int]) -> None:
    cost = variant(name)
    shape = shape_of(chunks, decodes)
    total = sum(cost.breakdown(shape).values()) * 1e9
    assert cost.gpu_ns(shape) == pytest.approx(total, rel=1e-6, abs=5)


@cache
def with_bandwidth(name: str, factor: float, link: float) -> RooflineCost:
    gpu = GPUS[VARIANTS[name]["gpu"]]
    faster = replace(
        gpu,
        memory_bandwidth=gpu.memory_bandwidth * factor,
        nvlink_bandwidth=None if gpu.nvlink_bandwidth is None else gpu.nvlink_bandwidth * link,
        pcie_bandwidth=gpu.pcie_bandwidth * link,
    )
    return make(hardware=faster, **VARIANTS[name])


@given(
    name=names,
    factors=st.sampled_from([(1.01, 1.0), (3.0, 1.0), (1.0, 2.0)]),
    chunks=CHUNK_LISTS,
    decodes=DECODE_LISTS,
)
@settings(deadline=None)
def test_more_bandwidth_is_never_slower(
    name: str, factors: tuple[float, float], chunks: list[tuple[int, int]], decodes: list[int]
) -> None:
    shape = shape_of(chunks, decodes)
    assert with_bandwidth(name, *factors).gpu_ns(shape) <= variant(name).gpu_ns(shape)


@given(chunks=CHUNK_LISTS, decodes=DECODE_LISTS)
@settings(deadline=None, max_examples=50)
def test_fp8_kv_is_never_slower(chunks: list[tuple[int, int]], decodes: list[int]) -> None:
    shape = shape_of(chunks, decodes)
    assert _fp8_kv().gpu_ns(shape) <= variant("dense").gpu_ns(shape)


@cache
def _fp8_kv() -> RooflineCost:
    return make(kv_cache_dtype="fp8")


@given(tokens=st.integers(1, 8000), tp=st.sampled_from([2, 4, 8]))
@settings(deadline=None, max_examples=30)
def test_tensor_parallelism_over_pcie_is_slower_than_over_nvlink(tokens: int, tp: int) -> None:
    assert _llama_tp(tp, False).gpu_ns(prefill(tokens)) > _llama_tp(tp, True).gpu_ns(prefill(tokens))


@cache
def _llama_tp(tp: int, nvlink: bool) -> RooflineCost:
    gpu = GPUS["a100-80gb-sxm"]
    return make(hardware=gpu if nvlink else replace(gpu, nvlink_bandwidth=None), tensor_parallel_size=tp)


def test_single_sequence_decode_is_bound_by_reading_the_weights() -> None:
    """llama-2-7b in 16 bits on an A100: 13.2 GB over 2.04 TB/s is 6.5 ms at best; engines reach 8-9."""
    milliseconds = make().gpu_ns(decode(1, 512)) / 1e6
    assert 8.0 < milliseconds < 9.5


def test_prefill_is_bound_by_arithmetic() -> None:
    """2,048 tokens of llama-2-7b: 27 TFLOP are 90 ms at an A100's peak, about 0.65 of which is reached."""
    milliseconds = make().gpu_ns(prefill(2048)) / 1e6
    assert 0.60 < 90 / milliseconds < 0.75


def test_float32_by_mistake() -> None:
    """Twice the bytes: decode takes twice as long. No tensor cores: prefill takes more than ten times as long."""
    right, wrong = make(), make(dtype="float32")
    assert wrong.gpu_ns(decode(1, 512)) / right.gpu_ns(decode(1, 512)) == pytest.approx(2, rel=0.1)
    assert wrong.gpu_ns(prefill(2048)) / right.gpu_ns(prefill(2048)) > 10


def test_small_weights_speed_up_decode_and_not_prefill_where_arithmetic_stays() -> None:
    right, int4 = make(), make(dtype="int4")
    assert right.gpu_ns(decode(1, 512)) / int4.gpu_ns(decode(1, 512)) > 2.5
    assert int4.gpu_ns(prefill(2048)) == pytest.approx(right.gpu_ns(prefill(2048)), rel=0.01)
    fp8 = make(dtype="fp8", hardware=GPUS["h100-sxm"]).gpu_ns(prefill(2048))
    assert make(hardware=GPUS["h100-sxm"]).gpu_ns(prefill(2048)) / fp8 > 1.5


def test_a_pipeline_stage_takes_its_share() -> None:
    whole = make()
    half = make(pipeline_parallel_size=2)
    assert half.pipeline_stages == 2
    shape = prefill(2048)
    sent = half.breakdown(shape)["send_receive"]
    assert sent > 0
    assert 2 * half.gpu_ns(shape) == pytest.approx(whole.gpu_ns(shape) + 2e9 * sent, rel=1e-6)


def test_eager_mode_is_bound_by_launches_at_small_batches_only() -> None:
    graphs, eager = make(), make(enforce_eager=True)
    small, large = decode(1, 512), prefill(2048)
    assert eager.gpu_ns(large) == graphs.gpu_ns(large)
    h100 = GPUS["h100-sxm"]
    assert make(hardware=h100, enforce_eager=True).gpu_ns(small) > 1.3 * make(hardware=h100).gpu_ns(small)


def test_swapping_costs_pcie_time_over_all_gpus() -> None:
    shape = StepShape(swap_bytes=32_000_000_000)
    one = make().gpu_ns(shape) / 1e9
    assert one == pytest.approx(1 / 0.7, rel=1e-3)
    assert make(tensor_parallel_size=4).gpu_ns(shape) / 1e9 == pytest.approx(one / 4, rel=1e-3)


def test_host_time_is_the_stated_default_or_what_the_scenario_says() -> None:
    shape = decode(10, 100)
    assert make().host_ns(shape) == 1_000_000 + 10 * 8_000
    assert make(tensor_parallel_size=2).host_ns(shape) == 1_200_000 + 10 * 8_000
    own = make(host_overhead_ms=2.5)
    assert own.host_ns(shape) == own.empty_step_ns() == 2_500_000
    none = make(host_overhead_ms=0.0)
    assert (none.host_ns(shape), none.empty_step_ns()) == (0, 1)


def test_it_says_that_it_is_an_estimate() -> None:
    described = make(dtype="fp8").describe()
    assert described["kind"] == "roofline"
    assert described["estimate"] is True
    assert described["text"] == "roofline estimate from datasheet figures; not measured"
    efficiency = described["efficiency"]
    assert isinstance(efficiency, dict)
    assert efficiency["gemm"] == 0.72


def test_few_tokens_read_few_experts() -> None:
    tokens = np.array([0.0, 1.0, 2.0, 10_000.0])
    touched = distinct_experts(8, 2, tokens)
    assert touched.tolist() == pytest.approx([0, 2, 3.5, 8])
    one, many = variant("moe-tp").gpu_ns(decode(1, 10)), variant("moe-tp").gpu_ns(decode(32, 10))
    assert many / one > 2


@given(base=st.floats(0, 1), exponent=st.integers(0, 10_000))
def test_powers_by_squaring(base: float, exponent: int) -> None:
    assert power(base, np.array([float(exponent)]))[0] == pytest.approx(base**exponent, rel=1e-9, abs=1e-290)


def test_counts_beyond_every_table_are_costed() -> None:
    cost = make(max_num_batched_tokens=512, max_num_seqs=8)
    assert cost.gpu_ns(prefill(5_000)) == pytest.approx(make(max_num_batched_tokens=8192).gpu_ns(prefill(5_000)), abs=1)
    assert cost.gpu_ns(decode(300, 100)) == pytest.approx(make().gpu_ns(decode(300, 100)), abs=1)
