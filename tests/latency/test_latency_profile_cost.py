"""The measured step cost: exact integers, terms that add up, and physics that points the right way."""

from __future__ import annotations

from dataclasses import replace
from math import isqrt
from typing import Any

import numpy as np
import pytest
from engines import engine_config
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import ATTENTION, DEVICE, hand_made

from sim.errors import InputError
from sim.latency.base import StepShape
from sim.latency.gpus import GpuSpec, load_gpu
from sim.latency.models import load_model
from sim.latency.operators import launched_operators
from sim.latency.precision import resolve_precision
from sim.latency.profile.cost import ProfileCost
from sim.latency.profile.file import Host, Profile
from sim.latency.profile.graphs import graph_sizes, padded
from sim.latency.profile.integers import Segments, context_knots, whole_sqrt
from sim.latency.profile.library import Found, builtin_names, find_profile
from sim.latency.profile.mixed import (
    FLASH_ATTENTION_2,
    MEASURED_BANDWIDTH,
    MEASURED_FLOPS,
    mixed_ratio,
    on_another_gpu,
    uses_flash_attention_2,
)
from sim.latency.profile.profiled_operators import STEP_NS
from sim.latency.profile.speed_of_light import LAUNCH_NS
from sim.scenario.schema import EngineConfig

H100 = load_gpu("h100-sxm")


def engine(**settings: Any) -> EngineConfig:
    return engine_config(**{"model": "llama-3.1-8b", "gpu": "h100-sxm", **settings})


def cost(profile: Profile | None = None, gpu: GpuSpec = H100, **settings: Any) -> ProfileCost:
    """Of a hand-made profile unless told otherwise."""
    profile = profile or hand_made()
    config = engine(gpu=gpu.name, **settings)
    return ProfileCost(Found(profile, profile.device), load_model(config.model), gpu, config)


def built_in(gpu: str, **settings: Any) -> ProfileCost:
    config = engine(gpu=gpu, **settings)
    return ProfileCost(find_profile(None, load_gpu(gpu)), load_model(config.model), load_gpu(gpu), config)


def decodes(batch: int, context: int) -> StepShape:
    return StepShape(num_decodes=batch, num_sampled=batch, decode_context_tokens=batch * context)


def prefill(chunk: int, prior: int = 0, shape: StepShape | None = None) -> StepShape:
    """A chunk, beside the decodes of ``shape``."""
    return replace(
        shape or StepShape(),
        num_prefills=1,
        num_prefill_tokens=chunk,
        prefill_context_tokens=prior + chunk,
        prefill_attention_pairs=chunk * (2 * prior + chunk),
    )


SHAPES = st.builds(
    lambda batch, context, chunk, prior: (
        prefill(chunk, prior, decodes(batch, context)) if chunk else decodes(batch, context)
    ),
    st.integers(1, 256),
    st.integers(1, 4096),
    st.integers(0, 1500),
    st.integers(0, 2000),
)
SWAPPING = st.builds(
    lambda shape, swapped: replace(shape, swap_bytes=swapped), SHAPES, st.sampled_from([0, 0, 7, 1 << 30])
)
COSTS = {
    "8b": cost(),
    "70b on 8": cost(model="llama-3.1-70b", tensor_parallel_size=8),
    "staged": cost(tensor_parallel_size=2, pipeline_parallel_size=2),
    "experts": cost(model="mixtral-8x7b", tensor_parallel_size=2),
    "eager": cost(enforce_eager=True),
}


@pytest.mark.parametrize("name", COSTS)
@settings(deadline=None)
@given(batch=st.integers(1, 256), context=st.integers(1, 5000), steps=st.integers(1, 200))
def test_a_run_of_decode_steps_is_its_steps(name: str, batch: int, context: int, steps: int) -> None:
    model = COSTS[name]
    run = model.decode_run_ns(batch, batch * context, steps)
    singles = [
        model.gpu_ns(StepShape(num_decodes=batch, num_sampled=batch, decode_context_tokens=batch * (context + i)))
        for i in range(steps)
    ]
    assert run.tolist() == singles


@pytest.mark.parametrize("name", COSTS)
@settings(deadline=None)
@given(shape=SHAPES)
def test_terms_add_up_and_are_never_negative(name: str, shape: StepShape) -> None:
    model = COSTS[name]
    terms = model.breakdown(shape)
    assert sum(terms.values()) == model.gpu_ns(shape)
    assert min(terms.values()) >= 0
    assert (terms["prefill_attention"] > 0) == (shape.num_prefills > 0)


def test_a_step_counted_by_hand() -> None:
    """Twice the speed of light, one decode: weights once, KV once, stated figures for what is not in the profile."""
    model, shape = cost(), decodes(1, 4096)
    terms = model.breakdown(shape)
    weights = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) * 2 / 3e12 * 1e9
    assert terms["matrices"] == pytest.approx(2 * (weights + 32 * 4 * LAUNCH_NS), rel=1e-3)
    kv = 32 * 4096 * 2 * 8 * 128 * 2 / 3e12 * 1e9
    assert terms["decode_attention"] == pytest.approx(2 * (kv + 32 * LAUNCH_NS), rel=1e-3)
    head = 128256 * 4096 * 2 / 3e12 * 1e9
    logits = 128256 * 24 / (0.7 * 3e12) * 1e9
    assert terms["lm_head"] == pytest.approx(2 * head, rel=0.02)
    assert terms["sampling"] == pytest.approx(50_000 + logits, rel=1e-3)
    assert terms["step_overhead"] == STEP_NS
    assert not {"all_reduce", "experts", "send_receive", "launches"} & set(terms)
    assert 32 * 5 * 3000 < terms["elementwise"] < 32 * 6 * 3100


def test_a_prompt_counted_by_hand() -> None:
    """A profile of constant multiples gives the pairs of the chunk, whatever came before it."""
    for chunk, prior in ((2048, 0), (1024, 3072)):
        terms = cost(max_num_batched_tokens=4096).breakdown(prefill(chunk, prior))
        pairs = 32 * 4 * 4096 * chunk * (prior + chunk / 2) / H100.fp16_flops * 1e9
        assert terms["prefill_attention"] == pytest.approx(2 * (pairs + 32 * LAUNCH_NS), rel=0.02)


def test_two_gpus_pay_two_all_reduces_a_layer_and_one_for_the_embedding() -> None:
    terms = cost(tensor_parallel_size=2).breakdown(prefill(1024))
    each = 1024 * 4096 * 2 * 1.0 / 400e9 * 1e9 + LAUNCH_NS
    assert terms["all_reduce"] == pytest.approx(2 * 65 * each, rel=1e-3)


@pytest.mark.parametrize("operator", ["gemm", "decode_attention", "prefill_attention"])
def test_a_profile_that_lacks_what_every_step_needs_is_refused(operator: str) -> None:
    profile = hand_made()
    operators = {name: each for name, each in profile.operators.items() if name != operator}
    with pytest.raises(InputError, match=rf"latency\.profile: hand-made has no {operator}"):
        cost(profile.model_copy(update={"operators": operators})).gpu_ns(prefill(16))


def test_a_window_bounds_what_attention_costs_but_not_the_rest() -> None:
    model = cost(model="mistral-7b", max_model_len=16384, max_num_batched_tokens=16384)
    assert model.model.sliding_window == 4096
    at, beyond = (model.breakdown(decodes(8, context)) for context in (4096, 16000))
    assert beyond == at
    assert model.breakdown(decodes(8, 2048))["decode_attention"] < at["decode_attention"]
    short, long = (model.breakdown(prefill(512, prior)) for prior in (8000, 15000))
    assert short == long
    assert model.breakdown(prefill(512, 1000))["prefill_attention"] < short["prefill_attention"]
    pairs = 32 * 4 * 4096 * 16000 * 4096 / H100.fp16_flops * 1e9
    assert model.breakdown(prefill(16000))["prefill_attention"] == pytest.approx(2 * (pairs + 32 * LAUNCH_NS), rel=0.02)


def test_graph_sizes_are_vllms() -> None:
    assert graph_sizes(256, 8192)[:5] == [1, 2, 4, 8, 16]
    assert graph_sizes(256, 8192)[-3:] == [480, 496, 512]
    assert graph_sizes(128, 8192)[-1] == 256
    assert graph_sizes(3, 8192) == [1, 2, 4]
    assert padded(np.array([0.0, 1.0, 3.0, 9.0, 250.0, 256.0, 257.0]), graph_sizes(128, 8192)).tolist() == [
        *(0, 1, 4, 16, 256, 256, 257)
    ]


def test_batches_are_padded_to_captured_sizes_unless_eager() -> None:
    graphs, eager = cost(), cost(enforce_eager=True)
    assert graphs.breakdown(decodes(9, 64))["matrices"] == graphs.breakdown(decodes(16, 64))["matrices"]
    assert eager.breakdown(decodes(9, 64))["matrices"] < eager.breakdown(decodes(16, 64))["matrices"]


def test_without_graphs_launching_is_a_floor() -> None:
    host = Host(step_ns=500_000, request_ns=5_000, eager_launch_ns=40_000, origin="made up")
    profile = Profile.model_validate({**hand_made().model_dump(), "host": host.model_dump()})
    model = cost(profile, enforce_eager=True)
    terms = model.breakdown(decodes(1, 64))
    outside = sum(terms[name] for name in ("decode_attention", "lm_head", "sampling", "step_overhead"))
    assert model.gpu_ns(decodes(1, 64)) - outside == pytest.approx(32 * 10 * 40_000, abs=2)
    assert (model.host_ns(decodes(3, 64)), model.empty_step_ns()) == (515_000, 500_000)
    assert model.breakdown(prefill(2048))["launches"] == 0


@pytest.mark.parametrize(
    ("name", "dtype", "tp", "operators"),
    [
        ("llama-3.1-8b", "bfloat16", 1, 32 * 10),
        ("llama-3.1-8b", "bfloat16", 2, 32 * 12),
        ("llama-3.1-8b", "fp8", 1, 32 * 14),
        ("qwen3-14b", "bfloat16", 1, 40 * 13),
        ("qwen3-14b", "int4", 1, 40 * 17),
    ],
)
def test_operators_that_eager_mode_launches(name: str, dtype: str, tp: int, operators: int) -> None:
    """Qwen3-14B AWQ took 20.6 ms a token on an A100 under vLLM 0.9 (vllm#20469): 17 ms of that are these launches."""
    model = load_model(name)
    precision = resolve_precision(engine(model=name, dtype=dtype), H100, model)
    assert launched_operators(model, precision, tp) == operators


def test_host_time_is_as_said() -> None:
    config = engine()
    profile = hand_made()
    model = ProfileCost(Found(profile, profile.device), load_model(config.model), H100, config, host_overhead_ms=2.5)
    assert (model.host_ns(decodes(9, 64)), model.empty_step_ns()) == (2_500_000, 2_500_000)


def test_decodes_beside_a_chunk_cost_what_a_mixed_table_says() -> None:
    keys = [(*ATTENTION, 32, 8, 128, 0, 512, 0, number) for number in (1, 64)]
    with_table = cost(hand_made(mixed_attention=keys))
    shape = prefill(512, 0, decodes(32, 1024))
    mixed = with_table.breakdown(shape)["decode_attention"]
    alone = with_table.breakdown(decodes(32, 1024))["decode_attention"]
    assert mixed == pytest.approx(alone, rel=0.1)
    assert "mixed_attention" not in with_table.describe()["stand_ins"]  # type: ignore[operator]


def test_flash_attention_2_loses_its_decode_path_beside_a_chunk() -> None:
    profile = hand_made()
    operators = dict(profile.operators)
    operators["decode_attention"] = operators["decode_attention"].model_copy(update={"kernel": "vllm_flash_attn_fa2"})
    fa2 = cost(profile.model_copy(update={"operators": operators}))
    alone, mixed = decodes(64, 1024), prefill(512, 0, decodes(64, 1024))
    ratio = fa2.breakdown(mixed)["decode_attention"] / fa2.breakdown(alone)["decode_attention"]
    read = np.array([64 * 1024 * 4096.0])
    of_its_own = on_another_gpu(np.array([1.62]), read, H100.fp16_flops, profile.device.memory_bandwidth_bytes_per_s)
    assert ratio == pytest.approx(float(of_its_own[0]), abs=0.02)
    assert 1.3 < ratio < 1.45, "1.62 on the GPU of the table, which has less arithmetic"
    assert "mixed_attention" in fa2.describe()["stand_ins"]  # type: ignore[operator]


def test_the_mixed_ratio_goes_by_a_gpus_arithmetic_for_its_bandwidth() -> None:
    """Beside a chunk FlashAttention-2 multiplies whole tiles for one query each: an A100 loses more, an L40S less."""
    ratio, much = np.array([0.5, 1.5, 3.0]), np.full(3, 1e9)
    assert on_another_gpu(ratio, much, MEASURED_FLOPS, MEASURED_BANDWIDTH) == pytest.approx(ratio)
    a100, l40s = on_another_gpu(ratio, much, 312e12, 2039e9), on_another_gpu(ratio, much, 362.05e12, 864e9)
    assert a100 == pytest.approx(ratio * 1.83, rel=0.01)
    assert l40s == pytest.approx([0.5, 1.006, 2.012], rel=0.01)
    few = on_another_gpu(ratio, np.zeros(3), 312e12, 2039e9)
    assert few == pytest.approx(ratio * 503.8 / 312), "nothing is read: both times are the cores'"


def test_the_mixed_ratio_is_the_table_at_its_places() -> None:
    for group, table in FLASH_ATTENTION_2.items():
        assert mixed_ratio(group, 64, np.array([16.0, 1024.0])) == pytest.approx([table[4][0], table[4][3]])
    assert mixed_ratio(1, 1024, np.array([64.0]))[0] == pytest.approx(1.0)
    between = mixed_ratio(2, 1024, np.array([64.0]))[0]
    assert 1.0 < between < mixed_ratio(4, 1024, np.array([64.0]))[0]
    assert uses_flash_attention_2("vllm_flash_attn")
    assert not uses_flash_attention_2("vllm_flash_attn_fa3, vllm_flash_attn_fa4")


def test_a_small_kv_cache_is_charged_as_if_it_came_from_memory() -> None:
    """A table whose short contexts were found in the L2 cache is read as a line up to where they cannot be."""
    profile = hand_made()
    curves = []
    for each in profile.operators["decode_attention"].curves:
        warm = [
            time / 4 if each.key[-1] == 32 and at == 64 else time
            for at, time in zip(each.at, each.time_ns, strict=True)
        ]
        curves.append(each.model_copy(update={"time_ns": tuple(warm)}))
    operators = {
        **profile.operators,
        "decode_attention": profile.operators["decode_attention"].model_copy(update={"curves": tuple(curves)}),
    }
    cold, warm = (
        model.operators.decode_attention_ns(32, np.array([1.0, 64.0, 300.0, 2048.0]))
        for model in (cost(), cost(profile.model_copy(update={"operators": operators})))
    )
    assert 32 * 300 * 4096 < DEVICE.l2_bytes < 32 * 2048 * 4096 / 1.2
    line = warm[0] + (warm[3] - warm[0]) * np.array([63, 299]) / 2047
    assert warm[1:3] == pytest.approx(line)
    assert (warm <= cold * 1.001).all()


def test_segments_are_exact_at_knots_and_linear_between() -> None:
    segments = Segments([2, 10, 30], np.array([100.0, 900.0, 700.0]))
    assert [segments.at(count) for count in (0, 2, 6, 10, 20, 30, 50)] == [-100, 100, 500, 900, 800, 700, 500]
    assert segments.run(2, 4, 8).tolist() == [segments.at(2 + 4 * i) for i in range(8)]
    assert context_knots(100) == [1, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128]


# -- changing one physical input moves the prediction the right way ---------------------------------------------------


@pytest.mark.parametrize("gpu", builtin_names())
@settings(deadline=None)
@given(shape=SHAPES)
def test_longer_contexts_and_chunks_are_never_faster(gpu: str, shape: StepShape) -> None:
    model = BUILT_IN[gpu]
    longer = replace(shape, decode_context_tokens=shape.decode_context_tokens + 64 * shape.num_decodes)
    assert model.gpu_ns(longer) >= model.gpu_ns(shape)
    if shape.num_prefills:
        after = replace(
            shape,
            prefill_context_tokens=shape.prefill_context_tokens + 512,
            prefill_attention_pairs=shape.prefill_attention_pairs + 2 * 512 * shape.num_prefill_tokens,
        )
        assert model.gpu_ns(after) >= model.gpu_ns(shape)


@pytest.mark.parametrize("gpu", builtin_names())
@settings(deadline=None)
@given(batch=st.integers(1, 255), context=st.integers(1, 4000), more=st.integers(1, 64))
def test_a_larger_batch_is_never_cheaper(gpu: str, batch: int, context: int, more: int) -> None:
    model = BUILT_IN[gpu]
    larger, smaller = (model.gpu_ns(decodes(size, context)) for size in (min(batch + more, 256), batch))
    assert larger >= smaller - 20, "but for the rounding of slopes between knots, nanoseconds"


BUILT_IN = {name: built_in(name) for name in builtin_names()}


@settings(deadline=None)
@given(shape=SHAPES)
def test_more_bandwidth_is_never_slower(shape: StepShape) -> None:
    assert MORE_BANDWIDTH.gpu_ns(shape) <= COSTS["8b"].gpu_ns(shape)


MORE_BANDWIDTH = cost(hand_made(device=DEVICE.model_copy(update={"memory_bandwidth_bytes_per_s": 4e12})))


@pytest.mark.parametrize("batch", [1, 32, 256])
def test_fp8_kv_and_weights_are_not_slower(batch: int) -> None:
    for gpu in ("h100-sxm", "h200-sxm"):
        plain = built_in(gpu)
        shape = decodes(batch, 2048)
        # One request's KV is read in next to no time, and its query has to be made 8 bits as well.
        most = 1.03 if batch == 1 else 1.02
        assert built_in(gpu, kv_cache_dtype="fp8").gpu_ns(shape) <= most * plain.gpu_ns(shape)
        assert built_in(gpu, dtype="fp8").gpu_ns(shape) < plain.gpu_ns(shape)


@pytest.mark.parametrize("gpu", ["h100-sxm", "h200-sxm", "l40s"])
@pytest.mark.parametrize("model", [("llama-2-7b", 1), ("llama-3.1-8b", 1), ("llama-3.1-70b", 4)])
def test_fp8_kv_is_not_slower_once_there_is_much_kv_to_read(gpu: str, model: tuple[str, int]) -> None:
    """With little, its kernels take longer to start, by what was measured, and queries are made 8 bits: up to a tenth
    of the step."""
    split: dict[str, Any] = {"model": model[0], "tensor_parallel_size": model[1], "max_model_len": 4096}
    fp8, plain = built_in(gpu, kv_cache_dtype="fp8", **split), built_in(gpu, **split)
    for batch in (1, 8, 32, 128, 256):
        for context in (128, 512, 2048, 4096):
            shape = decodes(batch, context)
            ratio = fp8.gpu_ns(shape) / plain.gpu_ns(shape)
            assert ratio <= (1.0 if batch * context >= 200_000 else 1.12), (batch, context)


@pytest.mark.parametrize("gpu", ["h100-sxm", "h200-sxm", "l40s"])
@pytest.mark.parametrize("tokens", [8, 64, 256])
def test_fp8_experts_are_not_slower(gpu: str, tokens: int) -> None:
    for model in ("mixtral-8x7b", "llama-4-scout-17b-16e"):
        split: dict[str, Any] = {"model": model, "tensor_parallel_size": 4}
        shape = decodes(tokens, 512)
        assert built_in(gpu, dtype="fp8", **split).gpu_ns(shape) <= 1.02 * built_in(gpu, **split).gpu_ns(shape)


def test_gpus_that_talk_over_pcie_are_slower() -> None:
    keys: dict[str, list[Any]] = {"all_reduce": []}
    shape = prefill(1024)
    fast, slow = (
        cost(
            hand_made(device=DEVICE.model_copy(update={"link_bandwidth_bytes_per_s": link}), **keys),
            tensor_parallel_size=4,
        )
        for link in (400e9, 32e9)
    )
    assert slow.breakdown(shape)["all_reduce"] > 5 * fast.breakdown(shape)["all_reduce"]
    assert "all_reduce" in slow.describe()["stand_ins"]  # type: ignore[operator]


def test_splitting_over_gpus_is_faster_for_large_steps_and_costs_communication() -> None:
    one, four = (built_in("h100-sxm", tensor_parallel_size=tp) for tp in (1, 4))
    for shape in (prefill(2048), decodes(64, 1024)):
        assert one.gpu_ns(shape) / 4 < four.gpu_ns(shape) < one.gpu_ns(shape)


def test_experts_of_a_near_number_format_but_the_very_shape_come_first() -> None:
    shape = (4096, 14336, 8, 2, 1, 1)
    wrong: list[Any] = [("fp8", 4096, 7168, 64, 6, 1, 1), ("bfloat16", *shape)]
    profile = hand_made(moe=wrong)
    curves = tuple(
        each.model_copy(update={"time_ns": tuple(9 * time for time in each.time_ns)}) if each.key[0] == "fp8" else each
        for each in profile.operators["moe"].curves
    )
    operators = {**profile.operators, "moe": profile.operators["moe"].model_copy(update={"curves": curves})}
    model = cost(
        profile.model_copy(update={"operators": operators}), model="mixtral-8x7b", dtype="fp8", max_model_len=64
    )
    plain = cost(hand_made(moe=wrong[1:]), model="mixtral-8x7b", dtype="fp8", max_model_len=64)
    assert model.breakdown(decodes(4, 64))["experts"] == plain.breakdown(decodes(4, 64))["experts"]


def test_a_dip_in_a_table_of_matrices_is_the_most_that_fewer_tokens_take() -> None:
    profile = hand_made()
    curves = tuple(
        each.model_copy(
            update={"time_ns": tuple(t * (1.5 if at == 16 else 1) for at, t in zip(each.at, each.time_ns, strict=True))}
        )
        for each in profile.operators["gemm"].curves
    )
    operators = {**profile.operators, "gemm": profile.operators["gemm"].model_copy(update={"curves": curves})}
    bumpy, plain = cost(profile.model_copy(update={"operators": operators})), cost()
    assert bumpy.breakdown(decodes(16, 64))["matrices"] <= bumpy.breakdown(decodes(64, 64))["matrices"]
    assert plain.breakdown(decodes(64, 64))["matrices"] == bumpy.breakdown(decodes(64, 64))["matrices"]


def test_experts() -> None:
    """Few tokens touch few experts; whole experts on each GPU are read by fewer of them."""
    mixtral = built_in("h100-sxm", model="mixtral-8x7b", tensor_parallel_size=2)
    terms = [mixtral.breakdown(decodes(batch, 64))["experts"] for batch in (1, 64)]
    assert 2 < terms[1] / terms[0] < 8
    spread = built_in("h100-sxm", model="mixtral-8x7b", tensor_parallel_size=2, enable_expert_parallel=True)
    assert spread.breakdown(decodes(64, 64))["experts"] == pytest.approx(terms[1], rel=0.5)


def test_describe_says_what_it_stands_on() -> None:
    told = built_in("h100-sxm", tensor_parallel_size=2).describe()
    assert (told["kind"], told["estimate"], told["profile"]) == ("profile", False, "h100-sxm")
    assert "gemm" in told["kernels"]  # type: ignore[operator]
    assert told["stand_ins"]


# -- recorded steps by term -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COSTS)
@settings(deadline=None)
@given(shapes=st.lists(SWAPPING, min_size=1, max_size=8), steps=st.integers(1, 20))
def test_recorded_steps_are_told_by_the_same_terms(name: str, shapes: list[StepShape], steps: int) -> None:
    model = COSTS[name]
    rows = [(shape, 1 if shape.num_prefills or shape.swap_bytes else steps) for shape in shapes]
    fields = ("num_prefills", "num_prefill_tokens", "prefill_context_tokens", "prefill_attention_pairs", "num_decodes")
    columns = {field: np.array([getattr(shape, field) for shape, _ in rows]) for field in fields}
    columns["num_steps"] = np.array([count for _, count in rows])
    columns["swap_bytes"] = np.array([shape.swap_bytes for shape, _ in rows])
    runs = [
        [
            replace(shape, decode_context_tokens=shape.decode_context_tokens + i * shape.num_decodes)
            for i in range(count)
        ]
        for shape, count in rows
    ]
    columns["gpu_ns"] = np.array([sum(model.gpu_ns(step) for step in run) for run in runs])
    terms = model.terms(columns)
    for row, run in enumerate(runs):
        expected = {term: sum(model.breakdown(step)[term] for step in run) for term in model.breakdown(run[0])}
        assert {term: int(times[row]) for term, times in terms.items()} == expected


def test_whole_square_roots() -> None:
    squares = np.array([root * root + off for root in (1, 2, 1000, 46341, 60_000_000) for off in (-1, 0, 1)])
    assert whole_sqrt(squares).tolist() == [isqrt(value) for value in squares.tolist()]
