"""Which kernels a layer has by version and model: fused all-reduces, wide norms, 32-bit routers, launches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engines import engine_config
from profiles import hand_made

from sim.latency.base import StepShape
from sim.latency.gpus import load_gpu
from sim.latency.models import load_model
from sim.latency.profile.all_reduce import fused_limit_bytes
from sim.latency.profile.cost import ProfileCost
from sim.latency.profile.file import Curve, Profile
from sim.latency.profile.graphs import graph_sizes
from sim.latency.profile.layer_kernels import LAUNCH_ONE_NS, launches_ns
from sim.latency.profile.library import Found, find_profile
from sim.latency.uniform import reshaped
from sim.scenario.schema import CompilationConfig, EngineConfig, PassConfig

FUSE = CompilationConfig(pass_config=PassConfig(fuse_allreduce_rms=True))
DO_NOT_FUSE = CompilationConfig(pass_config=PassConfig(fuse_allreduce_rms=False))


def engine(model: str = "llama-3.1-8b", gpu: str = "h100-sxm", tp: int = 8, **settings: Any) -> EngineConfig:
    return engine_config(model=model, gpu=gpu, tensor_parallel_size=tp, **settings)


def built_in(config: EngineConfig) -> ProfileCost:
    gpu = load_gpu(config.gpu_name)
    return ProfileCost(find_profile(None, gpu), load_model(config.model), gpu, config)


def terms(config: EngineConfig, tokens: int) -> dict[str, int]:
    shape = StepShape(num_decodes=tokens, num_sampled=tokens, decode_context_tokens=100 * tokens)
    return built_in(config).breakdown(shape)


# --- all-reduce ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "capability", "limit"),
    [
        ({}, "9.0", 512 << 10),
        ({"tp": 4}, "9.0", 2 << 20),
        ({}, "10.0", 1 << 20),
        ({}, "8.0", 0),
        ({"tp": 1}, "9.0", 0),
        ({"vllm_version": "0.16.0"}, "9.0", 0),
        ({"vllm_version": "0.17.0"}, "9.0", 512 << 10),
        ({"vllm_version": "0.17.0", "data_parallel_size": 2}, "9.0", 0),
        ({"vllm_version": "0.11.0", "compilation_config": FUSE}, "10.0", 1 << 20),
        ({"compilation_config": DO_NOT_FUSE}, "10.0", 0),
        ({"enforce_eager": True}, "10.0", 0),
    ],
)
def test_up_to_which_size_all_reduce_and_norm_are_one_kernel(
    settings: dict[str, Any], capability: str, limit: int
) -> None:
    assert fused_limit_bytes(engine(**settings), capability) == limit


def test_eight_b200_are_no_slower_than_four_at_a_batch_of_32() -> None:
    """256 and 512 KiB take vLLM's own kernel 26 us over 8 B200; fused with the norm it takes 8 and 11."""
    for tokens in (16, 32, 64):
        times = {
            tp: sum(terms(engine("llama-3.1-70b", "b200-sxm", tp, max_model_len=8192), tokens).values())
            for tp in (4, 8)
        }
        assert times[8] < times[4]


def test_a_fused_norm_does_not_start_by_itself() -> None:
    """Two norms a layer of 3 us each, and a shorter reduction: 62 GPU layers of MiniMax-M2.5, 32 of Llama-3.1-8B."""
    fused, apart = (terms(engine(compilation_config=each), 16) for each in (FUSE, DO_NOT_FUSE))
    assert apart["elementwise"] - fused["elementwise"] == pytest.approx(32 * 2 * 3000, rel=0.01)
    assert fused["all_reduce"] < apart["all_reduce"]
    large = [terms(engine(compilation_config=each, max_num_seqs=256), 200) for each in (FUSE, DO_NOT_FUSE)]
    assert large[0] == large[1], "beyond 512 KiB nothing is fused"


def test_a_message_takes_no_longer_than_a_larger_one() -> None:
    profile = hand_made(all_reduce=[("custom", 8)])
    curves = (Curve(key=("custom", 8), at=(1 << 10, 1 << 18, 1 << 20, 1 << 26), time_ns=(5e3, 26e3, 17e3, 4e5)),)
    operators = {
        **profile.operators,
        "all_reduce": profile.operators["all_reduce"].model_copy(update={"curves": curves}),
    }
    spiked = profile.model_copy(update={"operators": operators})
    ops = cost_of(spiked, engine(compilation_config=DO_NOT_FUSE)).operators
    assert ops.settled_ns("all_reduce", np.array([float(1 << 18)]))[0] == pytest.approx(17e3)
    assert ops.settled_ns("all_reduce", np.array([float(1 << 10)]))[0] == pytest.approx(5e3)


def cost_of(profile: Profile, config: EngineConfig) -> ProfileCost:
    return ProfileCost(Found(profile, profile.device), load_model(config.model), load_gpu("h100-sxm"), config)


# --- MiniMax's own kernels -------------------------------------------------------------------------------------------


def minimax(**settings: Any) -> EngineConfig:
    told = {"dtype": "fp8", "max_model_len": 9000, "max_num_batched_tokens": 8192, "vllm_version": "0.18.0"}
    return engine("minimax-m2.5", "b200-sxm", 4, **{**told, **settings})


@pytest.mark.parametrize(("version", "nccl_us"), [("0.10.2", (28.4, 121.7, 564)), ("0.32.0", (28.4, 87.2, 562))])
def test_large_messages_were_nccls_before_symmetric_memory(version: str, nccl_us: tuple[float, ...]) -> None:
    """4, 16 and 128 MiB over 8 H200s: NCCL takes 122 us for the second, symmetric memory 87; 4 are vLLM's own."""
    tokens = np.array([256.0, 1024.0, 8192.0])
    config = engine("llama-3.1-70b", "h200-sxm", 8, vllm_version=version, compilation_config=DO_NOT_FUSE)
    assert built_in(config).operators.all_reduce_ns(tokens) / 1e3 == pytest.approx(nccl_us, rel=0.01)


def test_a_32_bit_router_costs_what_was_measured() -> None:
    """20 us at 64 tokens by sglang's pull request 22744, 15 to 20 ms of a prompt of 8,192 over 62 layers."""
    ops = built_in(minimax()).operators
    narrow = built_in(minimax()).operators
    narrow.model = reshaped(narrow.model, has_float32_router=False)
    few, chunk = ops.router_ns(np.array([16.0, 64.0])), ops.router_ns(np.array([8192.0]))
    assert few[0] < 15e3
    assert few[1] == pytest.approx(20e3, rel=0.2)
    more = chunk - narrow.router_ns(np.array([8192.0]))
    assert 62 * more[0] == pytest.approx(16e6, rel=0.1)
    assert ops.router_ns(np.zeros(1))[0] == 0.0


def test_a_norm_over_all_heads_is_one_more_small_all_reduce() -> None:
    wide = built_in(minimax())
    shape = StepShape(num_decodes=8, num_sampled=8, decode_context_tokens=800)
    narrow = built_in(minimax())
    narrow.operators.model = reshaped(narrow.operators.model, has_wide_qk_norm=False)
    eight = np.array([8.0])
    more = wide.token_terms_ns(eight)["elementwise"] - narrow.token_terms_ns(eight)["elementwise"]
    squares = wide.operators.settled_ns("all_reduce", np.array([8 * 2 * 4.0]))[0]
    assert more[0] == pytest.approx(62 * (squares + 3000), rel=1e-6)
    assert wide.breakdown(shape)["elementwise"] > 0


# --- launches --------------------------------------------------------------------------------------------------------


def test_what_no_graph_holds_waits_for_its_launches() -> None:
    """37 kernels in each of MiniMax-M2.5's 62 layers, four of them FlashInfer's: 81 ms, for 600 tokens as for 900; less
    in a graph."""
    config = minimax(gpu_memory_utilization=0.9)
    times = {tokens: built_in(config).tokens_ns(tokens) for tokens in (512, 513, 900, 8192)}
    floor = 62 * (37 + 4) * LAUNCH_ONE_NS
    assert times[512] < 0.6 * floor
    assert times[513] == times[900] == pytest.approx(floor, rel=1e-3)
    assert times[8192] > 1.2 * floor
    captured = config.model_copy(update={"compilation_config": CompilationConfig(max_cudagraph_capture_size=2048)})
    assert built_in(captured).tokens_ns(900) < 0.7 * floor


@pytest.mark.parametrize(
    ("model", "gpu", "tp", "settings", "launches"),
    [
        ("llama-3.1-70b", "h100-sxm", 2, {"dtype": "fp8"}, 80 * 16),
        ("llama-3.1-70b", "h100-sxm", 1, {}, 80 * 10),
        ("mixtral-8x7b", "h100-sxm", 2, {}, 32 * 26),
        ("qwen3-14b", "h100-sxm", 1, {}, 40 * 11),
        ("llama-3.1-70b", "b200-sxm", 2, {"dtype": "fp8"}, 80 * 24),
        ("llama-3.1-70b", "b200-sxm", 2, {"dtype": "fp8", "compilation_config": DO_NOT_FUSE}, 80 * 22),
        ("llama-3.1-70b", "b200-sxm", 1, {}, 80 * 12),
    ],
)
def test_launches_by_hand(model: str, gpu: str, tp: int, settings: dict[str, Any], launches: int) -> None:
    ops = built_in(engine(model, gpu, tp, **settings)).operators
    assert launches_ns(ops, np.ones(1), is_compiled=True)[0] == launches * LAUNCH_ONE_NS
    assert launches_ns(ops, np.zeros(1), is_compiled=True)[0] == 0.0


def test_the_largest_captured_graph_is_as_told() -> None:
    assert graph_sizes(256, 8192)[-1] == 512
    assert graph_sizes(256, 8192, largest_captured=2048)[-1] == 2048
    assert graph_sizes(256, 1024, largest_captured=2048)[-1] == 1024


@pytest.mark.parametrize("tp", [1, 4])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen3-14b", "llama-3.1-70b", "qwen3-30b-a3b", "minimax-m2.5"])
def test_an_eager_engine_is_never_faster_than_a_compiled_one(model: str, tp: int) -> None:
    compiled = built_in(engine(model, tp=tp, max_num_batched_tokens=8192))
    eager = built_in(engine(model, tp=tp, max_num_batched_tokens=8192, enforce_eager=True))
    for tokens in (1, 32, 512, 520, 1000, 4000, 8192):
        shape = StepShape(1, tokens, tokens, tokens * tokens, 0, 0, 1)
        assert eager.gpu_ns(shape) >= 0.999 * compiled.gpu_ns(shape), tokens
