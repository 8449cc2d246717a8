"""Step costs of models of several kinds of layers: sums over the kinds, each as the tables have it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from engines import engine_config
from hypothesis import given, settings
from hypothesis import strategies as st
from many_kinds import INDEX, deepseek, gpt_oss, nemotron, qwen35

from sim.latency.base import StepShape, decode_run_by_steps
from sim.latency.gpus import GPUS
from sim.latency.model_spec import ModelSpec
from sim.latency.models import MODELS, load_model
from sim.latency.profile.cost import ProfileCost
from sim.latency.profile.expert_kernels import padded_for_marlin
from sim.latency.profile.kind_cost import KindCost, has_several_kinds
from sim.latency.profile.library import find_profile
from sim.latency.profile.mixer_times import BlockTimes, EstimatedTimes, GroupedTimes, StateTimes, block_of

MAKERS: dict[str, Callable[[], ModelSpec]] = {
    "deepseek-v3": deepseek,
    "deepseek-v3.2": lambda: deepseek("deepseek-v3.2", index=INDEX),
    "gpt-oss": gpt_oss,
    "qwen3.5": qwen35,
    "nemotron": nemotron,
}
NAMES = tuple(MAKERS)


def kind_cost(model: ModelSpec, gpu: str = "h200-sxm", tp: int = 8, **engine: object) -> KindCost:
    settings = {"dtype": "auto", "max_num_batched_tokens": 8192, "max_model_len": 32768, **engine}
    config = engine_config(model=model.name, gpu=gpu, tensor_parallel_size=tp, **settings)
    return KindCost(find_profile(None, GPUS[gpu]), model, GPUS[gpu], config)


COSTS = {
    name: kind_cost(make(), tp=4 if name == "qwen3.5" else 2 if name == "nemotron" else 8)
    for name, make in MAKERS.items()
}


def decodes(batch: int, context: int) -> StepShape:
    return StepShape(num_decodes=batch, decode_context_tokens=batch * context, num_sampled=batch)


def chunk(tokens: int, prior: int = 0, num: int = 1) -> StepShape:
    return StepShape(
        num_prefills=num,
        num_prefill_tokens=num * tokens,
        prefill_context_tokens=num * (prior + tokens),
        prefill_attention_pairs=num * tokens * (2 * prior + tokens),
        num_sampled=num,
    )


def test_a_model_of_one_shape_is_charged_as_before() -> None:
    """To the nanosecond but for the order of adding up."""
    for name, tp in (("llama-3.1-8b", 2), ("qwen3-30b-a3b", 1)):
        model, gpu = load_model(name), GPUS["h100-sxm"]
        config = engine_config(model=name, gpu="h100-sxm", tensor_parallel_size=tp)
        found = find_profile(None, gpu)
        one, many = ProfileCost(found, model, gpu, config), KindCost(found, model, gpu, config)
        for shape in (decodes(1, 100), decodes(64, 2000), chunk(512), chunk(300, 2000), chunk(100, 50, num=3)):
            assert many.gpu_ns(shape) == pytest.approx(one.gpu_ns(shape), rel=1e-6)


def test_presets_have_one_shape_and_these_have_several() -> None:
    assert not [name for name in ("llama-3.1-8b", "mixtral-8x7b", "minimax-m2.5") if has_several_kinds(MODELS[name])]
    assert all(has_several_kinds(make()) for make in MAKERS.values())


@pytest.mark.parametrize("name", NAMES)
def test_terms_add_up_and_a_run_is_its_steps(name: str) -> None:
    cost = COSTS[name]
    for shape in (decodes(33, 700), chunk(1000, 3000, num=2), decodes(5, 9000)):
        terms = cost.breakdown(shape)
        assert sum(terms.values()) == cost.gpu_ns(shape)
        assert min(terms.values()) >= 0
    run = cost.decode_run_ns(17, 17 * 900, 200)
    assert run.tolist() == decode_run_by_steps(cost, 17, 17 * 900, 200).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_columns_of_recorded_chunks_are_what_was_charged(name: str) -> None:
    cost = COSTS[name]
    shapes = [chunk(size, prior, num=3) for size, prior in ((1, 0), (64, 500), (900, 0), (900, 7000))]
    columns = [
        np.array([getattr(shape, field) for shape in shapes], dtype=np.int64)
        for field in ("prefill_attention_pairs", "prefill_context_tokens", "num_prefill_tokens")
    ]
    told = cost.prefill_attentions_ns(3, *columns)
    assert told.tolist() == [cost.breakdown(shape)["prefill_attention"] for shape in shapes]


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    num=st.integers(1, 4),
    size=st.integers(1, 4000),
    more=st.integers(1, 4000),
    prior=st.integers(0, 20_000),
)
def test_a_longer_chunk_is_never_cheaper(name: str, num: int, size: int, more: int, prior: int) -> None:
    cost = COSTS[name]
    assert cost.gpu_ns(chunk(size + more, prior, num)) >= cost.gpu_ns(chunk(size, prior, num))
    assert cost.gpu_ns(chunk(size, prior + more, num)) >= cost.gpu_ns(chunk(size, prior, num))


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(NAMES), batch=st.integers(1, 200), more=st.integers(1, 56), context=st.integers(1, 30_000))
def test_more_requests_and_longer_ones_are_never_cheaper(name: str, batch: int, more: int, context: int) -> None:
    cost = COSTS[name]
    assert cost.gpu_ns(decodes(batch + more, context)) >= cost.gpu_ns(decodes(batch, context))
    assert cost.gpu_ns(decodes(batch, context + more)) >= cost.gpu_ns(decodes(batch, context))


def test_a_layer_of_latent_attention_is_the_tables_block() -> None:
    """64 decodes of 4,096 tokens with 16 heads of one H200: 139.6 us, matrices included."""
    ops = COSTS["deepseek-v3"].operators
    ((times, _), *_) = ops.mixers()
    assert isinstance(times, BlockTimes)
    tokens = np.array([64.0])
    matrices = sum(
        ops.linear_ns(tokens, n, k, "fp8_block") for n, k in ((2112, 7168), (16 * 192, 1536), (7168, 16 * 128))
    )
    assert float(times.decode_ns(64, np.array([4096.0]))[0] + matrices[0]) == pytest.approx(139.6e3, rel=0.02)
    prompt = times.prefill_ns(1, np.array([8192.0])) + 8192 * times.made_ns_per_token
    long = np.array([8192.0])
    matrices = sum(
        ops.linear_ns(long, n, k, "fp8_block") for n, k in ((2112, 7168), (16 * 192, 1536), (7168, 16 * 128))
    )
    assert float((prompt + matrices)[0]) == pytest.approx(1551e3, rel=0.02)


def test_sparse_attention_reads_no_more_than_it_chooses() -> None:
    """At 32,000 tokens of context 64 decodes of DeepSeek-V3 take almost twice what those of V3.2 take."""
    full, chosen = COSTS["deepseek-v3"], COSTS["deepseek-v3.2"]
    long = decodes(64, 32_000)
    assert full.breakdown(long)["decode_attention"] > 1.8 * chosen.breakdown(long)["decode_attention"]


def test_kimi_k2_is_deepseeks_block_with_fewer_heads() -> None:
    cost = kind_cost(deepseek("kimi-k2", heads=64))
    ((times, _), *_) = cost.operators.mixers()
    assert isinstance(times, BlockTimes)
    assert (times.block, times.heads) == ("mla", 8)


def test_windows_that_were_measured_have_their_own_curves() -> None:
    """Half of gpt-oss's layers see 128 tokens: from there on a longer context costs the other half alone."""
    cost = COSTS["gpt-oss"]
    kinds = [times for times, _ in cost.operators.mixers()]
    assert [type(times) for times in kinds] == [GroupedTimes, GroupedTimes]
    window, full = kinds
    assert window.follows_tokens
    assert not full.follows_tokens
    short, long = np.array([512.0]), np.array([16_384.0])
    assert float(window.decode_ns(64, long)[0]) < 1.3 * float(window.decode_ns(64, short)[0])
    assert float(full.decode_ns(64, long)[0]) > 2.0 * float(full.decode_ns(64, short)[0])


def test_a_states_decode_knows_no_context() -> None:
    cost = COSTS["qwen3.5"]
    states = [times for times, _ in cost.operators.mixers() if isinstance(times, StateTimes)]
    assert [(each.key_heads, each.heads) for each in states] == [(4, 12)]
    (times,) = states
    few, many = times.decode_ns(64, np.array([10.0, 30_000.0]))
    assert few == many
    # 12 heads of 128 x 128 in 32 bits, read and written
    least = 64 * 2 * 12 * 128 * 128 * 4 / GPUS["h200-sxm"].memory_bandwidth * 1e9
    assert least < few < 4.0 * least


def test_what_no_table_has_is_told_as_an_estimate() -> None:
    """Mamba-2's scan is in no table; Qwen3.5's states are."""
    described = COSTS["nemotron"].describe()
    assert described["stand_ins"]["state_decode"].startswith("mamba2: ")  # type: ignore[index]
    of_decodes = {part["kind"] for part in described["evidence"]["decode_attention"]}  # type: ignore[index]
    assert of_decodes == {"measured", "stand_in"}  # its few layers of attention, and the states
    assert any(isinstance(times, EstimatedTimes) for times, _ in COSTS["nemotron"].operators.mixers())
    assert "state_decode" not in COSTS["qwen3.5"].describe()["stand_ins"]  # type: ignore[operator]
    families = COSTS["qwen3.5"].describe()["profile_families"]
    assert list(families) == ["state"]  # type: ignore[call-overload]


def test_blocks_are_told_by_the_sizes_of_attention() -> None:
    v3, v32 = deepseek().layers[0][0].mixer, deepseek(index=INDEX).layers[0][0].mixer
    assert v3 is not None
    assert v32 is not None
    assert (block_of(v3), block_of(v32)) == ("mla", "dsa")  # type: ignore[arg-type]
    grouped = gpt_oss().layers[0][0].mixer
    assert block_of(grouped) is None  # type: ignore[arg-type]


def routed_us(cost: KindCost, tokens: float) -> float:
    return float(cost.operators.routed_ns(np.array([tokens]))[0]) / 1e3


def test_mxfp4_experts_by_the_kernel_that_runs() -> None:
    """Two H100s and gpt-oss: Triton's kernel takes 2.17 ms for 8,192 tokens, Marlin's about twice as long, and less
    than Triton's for a few. B200s multiply by MXFP8 activations at a third of the time where they are asked to."""
    triton, marlin = (kind_cost(gpt_oss(), "h100-sxm", 2, moe_backend=name) for name in ("auto", "marlin"))
    assert routed_us(triton, 8192.0) == pytest.approx(2174.0, rel=0.03)
    assert 1.5 < routed_us(marlin, 8192.0) / routed_us(triton, 8192.0) < 2.5
    assert routed_us(marlin, 4.0) < routed_us(triton, 4.0)
    plain, small = (
        kind_cost(gpt_oss(), "b200-sxm", 1, moe_backend=name) for name in ("auto", "flashinfer_trtllm_afp8")
    )
    assert routed_us(plain, 8192.0) > 3.0 * routed_us(small, 8192.0)
    own = kind_cost(gpt_oss(), "l40s", 4)  # Marlin's own table has the shape there
    (asked,) = [key for operator, key in own.operators.asked if operator == "moe"]
    assert asked[0] == "mxfp4_marlin"
    assert own.operators.asked["moe", asked] == asked


def test_marlins_experts_are_padded() -> None:
    assert padded_for_marlin(2880, 2880, 8) == (3072, 3072)
    assert padded_for_marlin(2880, 2880, 1) == (2944, 3072)
    assert padded_for_marlin(2048, 7168, 8) == (2048, 7168)
