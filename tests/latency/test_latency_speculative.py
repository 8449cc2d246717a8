"""What drafting and verifying cost, and where the draft model's memory comes from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engines import engine_config

from sim.latency.base import StepShape
from sim.latency.build import build_step_cost, build_work_model
from sim.latency.draft_heads import draft_head, head_notes, head_problem
from sim.latency.memory import plan_memory
from sim.latency.models import load_model
from sim.latency.profile.graphs import graph_sizes
from sim.latency.speculative_cost import NGRAM_REQUEST_NS, SpeculativeCost
from sim.scenario.schema import EngineConfig, LatencyConfig

KINDS = pytest.mark.parametrize("kind", ["profile", "roofline"])


def engine(k: int = 4, method: str | None = "draft_model", **more: Any) -> EngineConfig:
    """70B on four H100s, with a 1B to draft for it; ``method`` None = without drafts."""
    settings = {"model": "llama-3.1-70b", "gpu": "h100-sxm", "tensor_parallel_size": 4, **more}
    if method is not None:
        draft = {"draft_model": "llama-3.2-1b"} if method == "draft_model" else {}
        settings["speculative"] = {"method": method, "num_speculative_tokens": k, **draft}
    return engine_config(**settings)


def cost(config: EngineConfig, kind: str = "profile") -> SpeculativeCost:
    built = build_step_cost(config, LatencyConfig(kind=kind))  # type: ignore[arg-type]
    assert isinstance(built, SpeculativeCost)
    return built


def verify(batch: int, context: int, drafts: int) -> StepShape:
    """Decodes that verify ``drafts`` each, ``context`` tokens of KV after them."""
    return StepShape(
        num_decodes=batch,
        decode_context_tokens=batch * context,
        num_draft_tokens=batch * drafts,
        verify_attention_pairs=batch * (1 + drafts) * context,
        num_sampled=batch * (1 + drafts),
    )


@KINDS
def test_drafting_is_k_passes_of_the_draft_model(kind: str) -> None:
    small = engine(model="llama-3.2-1b", method=None)
    alone = build_step_cost(small, LatencyConfig(kind=kind)).decode_run_ns(8, 8000, 1)[0]  # type: ignore[arg-type]
    for k in (1, 2, 4, 8):
        assert cost(engine(k), kind).draft_ns(verify(8, 1000, k)) == pytest.approx(k * alone, rel=0.15)


@KINDS
def test_verifying_reads_weights_and_kv_once(kind: str) -> None:
    """At small batches five tokens cost little more than one; at large ones, arithmetic counts."""
    target = cost(engine(), kind).target
    few = target.gpu_ns(verify(1, 2000, 4)) / target.gpu_ns(verify(1, 2000, 0))
    many = target.gpu_ns(verify(256, 2000, 4)) / target.gpu_ns(verify(256, 2000, 0))
    assert 1.0 < few < 1.15
    assert many > 1.5


@KINDS
def test_attention_of_many_queries_is_bound_by_arithmetic(kind: str) -> None:
    target = cost(engine(4), kind).target
    for drafts, bound in ((3, False), (2000, True)):
        shape = verify(4, 8000, drafts)
        once = replace(shape, verify_attention_pairs=0)
        assert (target.gpu_ns(shape) > target.gpu_ns(once)) is bound


@KINDS
def test_terms_of_a_step_add_up(kind: str) -> None:
    model = cost(engine(), kind)
    shape = replace(
        verify(8, 1000, 4),
        num_prefills=1,
        num_prefill_tokens=300,
        prefill_context_tokens=300,
        prefill_attention_pairs=300 * 300,
    )
    terms = model.breakdown(shape)
    unit = 1 if kind == "profile" else 1e9
    assert sum(terms.values()) * unit == pytest.approx(model.gpu_ns(shape), rel=1e-5)
    assert terms["draft"] * unit == model.draft_ns(shape) > 0


def test_terms_of_recorded_steps_add_up() -> None:
    model = cost(engine())
    shapes = [verify(n, 900, n % 5) for n in range(1, 40)]
    names = ("num_prefills", "num_prefill_tokens", "prefill_context_tokens", "prefill_attention_pairs")
    names += ("num_decodes", "decode_context_tokens", "num_draft_tokens", "verify_attention_pairs")
    columns = {name: np.array([getattr(shape, name) for shape in shapes]) for name in names}
    columns["num_steps"] = np.ones(len(shapes), dtype=np.int64)
    columns["gpu_ns"] = np.array([model.gpu_ns(shape) for shape in shapes])
    terms = model.terms(columns)
    assert (sum(terms.values()) == columns["gpu_ns"]).all()
    assert terms["draft"].tolist() == [model.draft_ns(shape) for shape in shapes]
    by_shape = [model.breakdown(shape) for shape in shapes]
    for name in ("lm_head", "sampling", "step_overhead", "decode_attention"):
        assert terms[name].tolist() == [each[name] for each in by_shape], name


@KINDS
def test_ngrams_take_host_time_only(kind: str) -> None:
    model, shape = cost(engine(method="ngram"), kind), verify(8, 1000, 4)
    assert model.gpu_ns(shape) == model.target.gpu_ns(shape)
    assert model.host_ns(shape) == model.target.host_ns(shape) + 8 * NGRAM_REQUEST_NS
    assert cost(engine(), kind).host_ns(shape) == model.target.host_ns(shape)


@KINDS
@pytest.mark.parametrize(
    ("rate", "batch", "low", "high"),
    [
        (0.9, 1, 2.2, 3.5),
        (0.8, 1, 1.9, 3.0),
        (0.8, 8, 1.7, 2.8),
        (0.1, 1, 0.6, 1.0),
        (0.2, 64, 0.4, 0.9),
        (0.6, 256, 0.4, 1.0),
    ],
)
def test_speed_up_of_decoding(kind: str, rate: float, batch: int, low: float, high: float) -> None:
    """E18: tokens per second on the accelerators with drafts, as a multiple of those without."""
    model = cost(engine(4), kind)
    plain = model.target.gpu_ns(verify(batch, 700, 0)) / batch
    drafted = model.gpu_ns(verify(batch, 700, 4)) / (batch * (1 - rate**5) / (1 - rate))
    assert low < plain / drafted < high


def test_decode_runs_are_steps() -> None:
    model = cost(engine())
    run = model.decode_run_ns(4, 4000, 3)
    shapes = [StepShape(num_decodes=4, decode_context_tokens=4000 + 4 * i, num_sampled=4) for i in range(3)]
    assert run.tolist() == [model.gpu_ns(shape) for shape in shapes]


def test_the_draft_model_takes_weights_and_kv_of_its_own() -> None:
    plain, drafted = plan_memory(engine(method=None)), plan_memory(engine())
    looked_up = plan_memory(engine(method="ngram"))  # more CUDA graphs, as a decode has more tokens; nothing else
    assert looked_up.available_kv_bytes + looked_up.graph_bytes == plain.available_kv_bytes + plain.graph_bytes
    assert looked_up.weights_bytes == plain.weights_bytes
    # 1.24 B parameters in 16 bits over 4 GPUs, and a rotary table; 16 layers with 2 of 8 KV heads of 64 on a GPU.
    assert drafted.weights_bytes - plain.weights_bytes == pytest.approx(1.236e9 * 2 / 4, rel=0.04)
    assert drafted.kv_bytes_per_token - plain.kv_bytes_per_token == 16 * 2 * 2 * 64 * 2
    assert drafted.num_gpu_blocks < plain.num_gpu_blocks
    quantised = plan_memory(engine(dtype="fp8")), plan_memory(engine(dtype="fp8", method=None))
    assert quantised[0].weights_bytes - quantised[1].weights_bytes == drafted.weights_bytes - plain.weights_bytes


def test_captured_sizes_are_multiples_of_a_decode() -> None:
    """By vLLM's own rule: sizes of its grid raised to multiples, and whole batches of decodes, up to 512 tokens."""
    sizes = graph_sizes(256, 8192, 5)
    assert all(size % 5 == 0 for size in sizes)
    assert sizes[:5] == [5, 10, 20, 25, 35]
    assert {40, 80, 480} <= set(sizes)
    assert max(sizes) == 500
    assert max(graph_sizes(8, 8192, 4)) == 64
    assert graph_sizes(1, 2048, 3) == [3]  # 6 would be beyond the largest of 1, 2, 3, 4
    assert graph_sizes(256, 8192, 1) == graph_sizes(256, 8192)


def test_flops_count_what_is_verified() -> None:
    work = build_work_model(engine(), LatencyConfig())
    assert work is not None

    def columns(drafts: int) -> dict[str, Any]:
        shape = verify(8, 1000, drafts)
        names = ("num_prefill_tokens", "num_decodes", "num_sampled", "prefill_context_tokens")
        names += ("prefill_attention_pairs", "decode_context_tokens", "num_draft_tokens", "verify_attention_pairs")
        return {name: np.array([getattr(shape, name)]) for name in names}

    assert work.total_flops(columns(4)) == pytest.approx(5 * work.total_flops(columns(0)), rel=1e-6)
    assert work.total_bytes(columns(4)) == pytest.approx(work.total_bytes(columns(0)), rel=1e-3)
    only_here = ("num_draft_tokens", "verify_attention_pairs")
    plain = {name: column for name, column in columns(0).items() if name not in only_here}
    assert work.total_flops(plain) == work.total_flops(columns(0))


def head(method: str, k: int = 3, **more: Any) -> EngineConfig:
    """8B on an H100, or ``more``, with a head that drafts."""
    settings = {"model": "llama-3.1-8b", "gpu": "h100-sxm", **more}
    return engine_config(**settings, speculative={"method": method, "num_speculative_tokens": k})


def test_memory_of_heads_by_hand() -> None:
    """Llama 3.1 8B: a layer has 218,103,808 parameters of matrices and 4,096 bytes of KV for each token."""
    plain = plan_memory(engine(model="llama-3.1-8b", tensor_parallel_size=1, method=None))
    layer = 218_103_808 * 2
    small = 3 * 4096 * 2 + 131072 * 128 * 2  # norms, rotary positions
    for method, extra in (
        ("eagle", 4096 * 8192 * 2),
        ("eagle3", (4096 * 12288 + 6144 * 4096 + 32000 * 4096) * 2),
    ):
        plan = plan_memory(head(method))
        assert plan.draft_weights_bytes == pytest.approx(layer + extra + small, rel=0.005)
        assert plan.kv_bytes_per_token == plain.kv_bytes_per_token + 4096
        assert plan.num_gpu_blocks < plain.num_gpu_blocks
    mtp = plan_memory(head("mtp", 1, model="deepseek-v3", gpu="h200-sxm", tensor_parallel_size=8, dtype="fp8"))
    assert mtp.kv_bytes_per_token == 62 * 576 * 2
    sparse = plan_memory(head("mtp", 1, model="deepseek-v3.2", gpu="h200-sxm", tensor_parallel_size=8, dtype="fp8"))
    assert sparse.kv_bytes_per_token == 62 * (576 * 2 + 132)  # with the keys of the index
    # One layer's 256 experts and its shared one in FP8 on eight GPUs, and the joining matrix, whole, in 16 bits.
    assert mtp.draft_weights_bytes > 257 * 3 * 7168 * 2048 / 8 + 7168 * 14336 * 2


@KINDS
def test_a_head_costs_a_layer_an_lm_head_and_its_joining_matrix(kind: str) -> None:
    """Reading 218 M parameters of a layer, 33.6 M of the matrix and 525 M of the LM head takes 1.55 GB / 3.35 TB/s at
    the least: 0.46 ms a pass, k passes a step."""
    least_ns = 1.55e9 / 3.35e12 * 1e9
    for k in (1, 2, 4):
        found = cost(head("eagle", k), kind).draft_ns(verify(1, 500, k))
        assert k * least_ns < found < 2.2 * k * least_ns
    smaller = cost(head("eagle3", 3), kind).draft_ns(verify(1, 500, 3))
    assert smaller < cost(head("eagle", 3), kind).draft_ns(verify(1, 500, 3))  # a smaller vocabulary to draft from


@KINDS
def test_a_head_is_an_estimate_and_its_terms_add_up(kind: str) -> None:
    model = cost(head("eagle3", 4), kind)
    shape = verify(8, 1000, 4)
    unit = 1 if kind == "profile" else 1e9
    assert sum(model.breakdown(shape).values()) * unit == pytest.approx(model.gpu_ns(shape), rel=1e-5)
    described: Any = model.describe()["draft"]
    assert described["method"] == "eagle3"
    assert described["evidence"]["all"][0]["kind"] == "estimate"


def test_eagle3_joins_hidden_states_of_three_layers_once() -> None:
    joining = cost(head("eagle3", 2), "roofline").joining
    assert joining is not None
    first, later = joining.ns(1, is_first=True), joining.ns(1, is_first=False)
    assert first / later == pytest.approx((4096 * 12288 + 6144 * 4096) / (6144 * 4096), rel=0.1)


def test_layers_that_draft_are_asked_of_the_model() -> None:
    known = load_model("deepseek-v3")
    assert known.mtp_layers == 1
    assert head_problem(known, "mtp", 3) is None
    several = replace(known, mtp_layers=3)
    assert head_problem(several, "mtp", 1) is None
    assert "set num_speculative_tokens to 1" in (head_problem(several, "mtp", 2) or "")
    assert "has no layer that drafts" in (head_problem(load_model("kimi-k2"), "mtp", 1) or "")
    unknown = load_model("qwen3-235b-a22b")
    assert unknown.mtp_layers is None
    assert head_problem(unknown, "mtp", 1) is None
    assert any("is not known here" in note for note in head_notes(unknown, "mtp"))
    assert not any("is not known here" in note for note in head_notes(known, "mtp"))


def test_heads_beside_experts_have_a_plain_mlp_and_mtp_the_models_experts() -> None:
    """Of Qwen3-235B a token passes 8 experts of 1,536."""
    model = load_model("qwen3-235b-a22b")
    assert draft_head(model, "eagle").intermediate_size == 12288
    assert not draft_head(model, "eagle").moes
    assert draft_head(model, "mtp").num_experts == 128
    assert draft_head(load_model("deepseek-v3"), "mtp").dtype == "fp8_block"
