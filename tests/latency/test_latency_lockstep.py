"""Experts over several ranks: what a step of the group takes, and physics that points the right way (E16)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engines import engine_config
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.errors import InputError
from sim.latency.base import StepCost, StepShape
from sim.latency.build import build_step_cost
from sim.latency.experts import ExpertGroup, dispatch_bytes
from sim.latency.gpus import GPUS
from sim.latency.lockstep_cost import LockstepCost
from sim.latency.memory import plan_memory
from sim.latency.models import MODELS
from sim.latency.precision import resolve_precision
from sim.latency.profile.cost import ProfileCost
from sim.latency.profile.expert_routing import table_imbalance
from sim.scenario.schema import CompilationConfig, EngineConfig, LatencyConfig

QWEN = MODELS["qwen3-30b-a3b"]
KINDS = ("profile", "roofline")


def engine(dp: int = 2, tp: int = 1, *, ep: bool = True, **settings_: Any) -> EngineConfig:
    told = {"model": "qwen3-30b-a3b", "gpu": "h200-sxm", "enable_expert_parallel": ep, **settings_}
    return engine_config(data_parallel_size=dp, tensor_parallel_size=tp, **told)


def any_cost(config: EngineConfig, kind: str = "profile", **latency: Any) -> StepCost:
    return build_step_cost(config, LatencyConfig(kind=kind, **latency))


def cost(config: EngineConfig, kind: str = "profile", **latency: Any) -> LockstepCost:
    built = any_cost(config, kind, **latency)
    assert isinstance(built, LockstepCost)
    return built


def decodes(batch: int, context: int = 500) -> StepShape:
    return StepShape(num_decodes=batch, num_sampled=batch, decode_context_tokens=batch * context)


def prefill(chunk: int) -> StepShape:
    return StepShape(
        num_prefills=1,
        num_prefill_tokens=chunk,
        prefill_context_tokens=chunk,
        prefill_attention_pairs=chunk * chunk,
        num_sampled=1,
    )


def together_ns(group: LockstepCost, tokens: int) -> dict[str, float]:
    return {name: float(times[0]) for name, times in group.own.group_terms_ns(np.array([float(tokens)])).items()}


# --- a step of the group --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_slowest_rank_and_what_all_do_together(kind: str) -> None:
    group = cost(engine(dp=2), kind)
    shapes = [decodes(40), decodes(10)]
    step = group.group_step(shapes)
    assert step.padded_tokens == [40, 40], "CUDA graphs: both as the larger"
    assert step.group_tokens == 80
    assert step.own_ns[0] > step.own_ns[1], "more decodes to attend"
    assert step.gpu_ns == pytest.approx(step.own_ns[0] + sum(together_ns(group, 80).values()), abs=2)
    assert group.group_step(shapes[::-1]).gpu_ns == step.gpu_ns


def test_one_batch_beyond_the_graphs_leaves_all_unpadded() -> None:
    group = cost(engine(dp=4))
    step = group.group_step([prefill(1000), decodes(3), StepShape(), decodes(5)])
    assert step.padded_tokens == [1000, 3, 1, 5]
    assert step.group_tokens == 1009
    assert cost(engine(dp=4, enforce_eager=True)).group_step([decodes(3), decodes(5)] * 2).padded_tokens == [3, 5, 3, 5]


@pytest.mark.parametrize("kind", KINDS)
def test_a_dummy_costs_as_much_as_the_padding_makes_it(kind: str) -> None:
    group = cost(engine(dp=2), kind)
    beside = group.group_step([decodes(64), StepShape()])
    assert beside.padded_tokens == [64, 64]
    assert beside.own_ns[1] < beside.own_ns[0], "no attention, no sampler"
    assert beside.gpu_ns == group.gpu_ns(decodes(64))


def test_steps_are_told_by_terms_that_add_up() -> None:
    group = cost(engine(dp=2, tp=2))
    shapes = [[decodes(40), decodes(10)], [prefill(700), StepShape()], [prefill(90), decodes(7)]]
    steps = [(shape, group.group_step(pair), rank) for pair in shapes for rank, shape in enumerate(pair)]
    names = ("num_prefills", "num_prefill_tokens", "prefill_context_tokens", "prefill_attention_pairs", "num_decodes")
    columns = {name: np.array([getattr(shape, name) for shape, _, _ in steps]) for name in names}
    columns["num_steps"] = np.ones(len(steps), dtype=np.int64)
    columns["gpu_ns"] = np.array([step.gpu_ns for _, step, _ in steps])
    columns["own_ns"] = np.array([step.own_ns[rank] for _, step, rank in steps])
    columns["padded_tokens"] = np.array([step.padded_tokens[rank] for _, step, rank in steps])
    columns["group_tokens"] = np.array([step.group_tokens for _, step, _ in steps])
    terms = group.terms(columns)
    assert {"all_reduce", "all_gather", "experts", "dispatch", "combine", "waiting"} < set(terms)
    assert (sum(terms.values()) == columns["gpu_ns"]).all()
    assert all((times >= 0).all() for times in terms.values())
    assert terms["decode_attention"][3] == 0, "a dummy attends to nothing"
    waits = columns["own_ns"].reshape(-1, 2)
    assert (terms["waiting"].reshape(-1, 2) == waits.max(axis=1, keepdims=True) - waits).all()


def test_without_graphs_launching_is_a_floor_of_the_group() -> None:
    eager = cost(engine(dp=2, enforce_eager=True))
    launches = eager.own.launch_floor_ns()
    assert eager.group_step([decodes(1), decodes(1)]).gpu_ns == launches > cost(engine(dp=2)).gpu_ns(decodes(1))
    assert eager.group_step([prefill(2000), prefill(2000)]).gpu_ns > launches


# --- which ranks exchange tokens --------------------------------------------------------------------------------


def test_groups_as_vllm_makes_them() -> None:
    """The examples in ``FusedMoEParallelConfig.make``: (TP, DP, EP flag) -> the experts' (tp, ep)."""
    told = {(2, 1, False): (2, 1), (1, 2, False): (2, 1), (2, 2, False): (4, 1), (2, 1, True): (1, 2)}
    told |= {(1, 2, True): (1, 2), (2, 2, True): (1, 4)}
    for (tp, dp, ep), split in told.items():
        group = ExpertGroup.of(engine(dp, tp, ep=ep), QWEN)
        assert group.split == split
        assert group.is_sequence_parallel == (ep and tp > 1 and dp > 1)
        assert group.exchange_gpus == (tp * dp if group.is_sequence_parallel else dp)
    dense = ExpertGroup.of(engine(4, model="llama-3.1-8b"), MODELS["llama-3.1-8b"])
    assert (dense.dp, dense.is_lockstep, dense.num_gpus) == (1, False, 1)


def test_dispatch_gathers_and_combine_reduces_every_token_of_the_group() -> None:
    """Bytes over a stated link: 48 layers of (n - 1) / n of 4,096 tokens, and a latency each."""
    config = engine(dp=4)
    group = cost(config, link_bandwidth_gb_s=100.0, link_latency_us=5.0)
    per_token = 2048 * 2 + 8 * 8
    assert dispatch_bytes(QWEN, resolve_precision(config, GPUS["h200-sxm"], QWEN)) == per_token
    terms = together_ns(group, 4096)
    assert terms["dispatch"] == pytest.approx(48 * (5e3 + 0.75 * 4096 * per_token / 100.0))
    assert terms["combine"] == pytest.approx(48 * (5e3 + 0.75 * 4096 * 4096 / 100.0))


def test_eight_bit_experts_get_eight_bit_tokens() -> None:
    config = engine(dp=4, dtype="fp8")
    assert dispatch_bytes(QWEN, resolve_precision(config, GPUS["h200-sxm"], QWEN)) == 2048 + 4 * 16 + 64
    in_blocks = replace(QWEN, dtype="fp8_block")
    config = engine(dp=4, dtype="auto")
    assert dispatch_bytes(QWEN, resolve_precision(config, GPUS["h200-sxm"], in_blocks)) == 2048 + 4 * 16 + 64


def test_there_is_no_exchange_without_data_parallelism() -> None:
    for kind in KINDS:
        assert not isinstance(any_cost(engine(dp=1, tp=2), kind), LockstepCost)
    alone = any_cost(engine(dp=1, tp=2))
    assert isinstance(alone, ProfileCost)
    assert {"dispatch", "combine"}.isdisjoint(alone.breakdown(decodes(8)))


def test_deepep_sends_tokens_to_their_experts_only_and_forgoes_graphs() -> None:
    config = engine(dp=8, all2all_backend="deepep_high_throughput")
    deepep, gathered = cost(config, "roofline"), cost(engine(dp=8), "roofline")
    assert deepep.experts.destinations(8) == pytest.approx(8 * (1 - (7 / 8) ** 8))
    assert together_ns(deepep, 65536)["dispatch"] < together_ns(gathered, 65536)["dispatch"]
    assert deepep.group_step([decodes(3)] * 8).padded_tokens == [3] * 8
    measured = cost(config)
    assert measured.describe()["stand_ins"]["all2all"].startswith("NCCL's all-to-all")  # type: ignore[index]


# --- physics ------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    ratios=st.lists(st.floats(1.0, 4.0), min_size=2, max_size=2).map(sorted),
    tokens=st.integers(1, 6000),
    backend=st.sampled_from(["allgather_reducescatter", "deepep_high_throughput"]),
)
def test_imbalance_is_never_faster(kind: str, ratios: list[float], tokens: int, backend: str) -> None:
    config = engine(dp=4, all2all_backend=backend)
    even, uneven = (together_ns(cost(config, kind, expert_load_imbalance=ratio), tokens) for ratio in ratios)
    assert uneven["experts"] >= even["experts"]
    assert uneven["dispatch"] >= even["dispatch"]
    if backend == "allgather_reducescatter":
        assert uneven["dispatch"] == even["dispatch"], "every token goes everywhere"


@pytest.mark.parametrize("kind", KINDS)
def test_imbalance_costs_where_there_is_work(kind: str) -> None:
    terms = [together_ns(cost(engine(dp=4), kind, expert_load_imbalance=ratio), 8192) for ratio in (1.0, 2.0, 4.0)]
    experts = [each["experts"] for each in terms]
    assert experts[0] < 0.8 * experts[1] < 0.8**2 * experts[2]


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    links=st.lists(st.floats(5.0, 500.0), min_size=2, max_size=2).map(sorted),
    tokens=st.integers(1, 6000),
    tp=st.sampled_from([1, 2]),
)
def test_a_slower_link_is_never_faster(kind: str, links: list[float], tokens: int, tp: int) -> None:
    slow, fast = (cost(engine(2, tp), kind, link_bandwidth_gb_s=link) for link in links)
    assert together_ns(slow, tokens)["dispatch"] >= together_ns(fast, tokens)["dispatch"]
    shape = prefill(min(tokens, 2048))
    assert slow.gpu_ns(shape) >= fast.gpu_ns(shape)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS), tokens=st.lists(st.integers(1, 300), min_size=2, max_size=2), more=st.integers(1, 60)
)
def test_more_work_on_any_rank_is_never_faster(kind: str, tokens: list[int], more: int) -> None:
    group = cost(engine(dp=2), kind)
    shapes = [decodes(count) for count in tokens]
    assert group.group_step([decodes(tokens[0] + more), shapes[1]]).gpu_ns >= group.group_step(shapes).gpu_ns


def test_even_routing_splits_the_work_as_tensor_parallelism_does() -> None:
    """A roofline of whole experts and of shares of all of them is the same; an imbalance is what tells them apart."""
    whole, shared = cost(engine(dp=4), "roofline"), cost(engine(dp=4, ep=False), "roofline")
    assert together_ns(whole, 3000) == together_ns(shared, 3000)
    assert together_ns(cost(engine(dp=4), "roofline", expert_load_imbalance=1.5), 3000) != together_ns(shared, 3000)


# --- what the tables hold already ------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [(128, 8, 8), (128, 8, 4), (256, 8, 8)])
def test_the_tables_own_imbalance(spread: tuple[int, int, int]) -> None:
    """Loads of a power law with an exponent near 1 are log-uniform: one to 820 tokens. GPUs with many experts each are
    nearer to each other."""
    experts, chosen, ep = spread
    rng = np.random.default_rng(7)
    loads = np.exp(rng.uniform(0, np.log(0.8 * 1024), size=(4000, experts)))
    shares = np.minimum(loads / loads.sum(axis=1, keepdims=True), 1 / chosen)
    gpus = shares.reshape(4000, ep, -1).sum(axis=2)
    expected = float((gpus.max(axis=1) / gpus.mean(axis=1)).mean())
    assert table_imbalance(experts, chosen, ep) == pytest.approx(expected, rel=0.02)
    assert 1 < table_imbalance(experts, chosen, ep) < ep
    assert table_imbalance(experts, chosen, 1) == 1.0


def test_the_tables_lay_few_experts_out_evenly() -> None:
    assert table_imbalance(8, 2, 8) == table_imbalance(16, 1, 4) == 1.0
    assert table_imbalance(32, 1, 4) > 1.0


def test_stating_the_tables_imbalance_changes_nothing_and_less_is_faster() -> None:
    config = engine(dp=4)
    measured = table_imbalance(128, 8, 4)
    as_is, stated = cost(config), cost(config, expert_load_imbalance=measured)
    assert as_is.describe()["expert_load_imbalance"] == measured
    for tokens in (16, 256, 1024, 8192):  # from 48 to 64 the table is level, so that nothing is to be seen there
        experts = together_ns(as_is, tokens)["experts"]
        assert together_ns(stated, tokens)["experts"] == pytest.approx(experts, rel=0.02)
        assert together_ns(cost(config, expert_load_imbalance=1.0), tokens)["experts"] < experts
    captured = engine(dp=1, tp=4).model_copy(
        update={"compilation_config": CompilationConfig(max_cudagraph_capture_size=2048)}
    )  # beyond the largest graph such a step waits for its launches, however its experts are spread
    one = any_cost(captured, expert_load_imbalance=2.0)
    assert one.gpu_ns(prefill(2000)) > any_cost(captured).gpu_ns(prefill(2000)), "one rank's experts too"


# --- memory ---------------------------------------------------------------------------------------------------------


def test_weights_of_qwen3_30b_by_hand() -> None:
    """48 layers of 128 experts of 3 * 2048 * 768: 29.0 G of the 30.5 G parameters go over all GPUs, 1.5 G to each."""
    experts = 48 * 128 * 3 * 2048 * 768
    alone = plan_memory(engine(dp=1)).weights_bytes
    for dp in (2, 4, 8):
        expected = alone - 2 * experts * (dp - 1) / dp
        for ep in (True, False):
            assert plan_memory(engine(dp, ep=ep)).weights_bytes == pytest.approx(expected, abs=2)
    both = plan_memory(engine(2, 2)).weights_bytes
    # KV heads split evenly over two GPUs; norms and rotary positions stay whole on each.
    tp_only = plan_memory(engine(1, 2)).weights_bytes
    assert both == pytest.approx(tp_only - 2 * experts / 2 / 2, abs=2)


def test_more_gpus_never_hold_more_of_the_experts_each() -> None:
    sizes = [plan_memory(engine(dp)).weights_bytes for dp in (1, 2, 4, 8, 16)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    blocks = [plan_memory(engine(dp)).num_gpu_blocks for dp in (1, 2, 4, 8)]
    assert blocks == sorted(blocks), "and leave more room for KV"


def test_mixtral_fits_eighty_gigabytes_as_two_ranks_only() -> None:
    alone = engine(1, model="mixtral-8x7b", gpu="h100-sxm")
    with pytest.raises(InputError, match=r"misses \d+\.\d GB"):
        plan_memory(alone)
    two = plan_memory(alone.model_copy(update={"data_parallel_size": 2}))
    # 46.7 G parameters, of them 32 * 8 * 3 * 4096 * 14336 = 45.1 G in experts.
    assert two.weights_bytes / 1e9 == pytest.approx(2 * (46.7 - 45.1 / 2), abs=0.2)


def test_what_does_not_fit_says_how_many_ranks_would() -> None:
    too_large = engine(2, model="mixtral-8x22b", gpu="h100-sxm")
    with pytest.raises(InputError, match=r"data_parallel_size 2: it misses .* would fit: .*data_parallel_size: 8"):
        plan_memory(too_large)


def test_ranks_of_a_dense_model_hold_all_of_it() -> None:
    dense = engine(4, model="llama-3.1-8b")
    assert plan_memory(dense) == plan_memory(dense.model_copy(update={"data_parallel_size": 1}))
