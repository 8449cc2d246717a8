"""Models with layers of several kinds: what their configs say, worked by hand for one of each kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engines import engine_config

from sim.errors import InputError
from sim.latency.attention_kinds import GroupedAttention, LatentAttention
from sim.latency.build import build_step_cost
from sim.latency.kv_layout import KvGroup
from sim.latency.memory import plan_memory
from sim.latency.model_spec import ModelSpec
from sim.latency.models import MODELS, load_model
from sim.latency.state_layers import StateLayer
from sim.latency.vision_tower import vision_spec
from sim.scenario.schema import LatencyConfig

SMALL: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
}
LATENT = SMALL | {
    "model_type": "deepseek_v3",
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "intermediate_size": 512,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "first_k_dense_replace": 1,
}
DELTA_NET = SMALL | {
    "model_type": "qwen3_next",
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 512,
    "full_attention_interval": 2,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "mamba_ssm_dtype": "float32",
}
MAMBA = SMALL | {
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "ME*-",
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 512,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "moe_shared_expert_intermediate_size": 96,
    "moe_latent_size": 128,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 32,
    "conv_kernel": 4,
}


def read(folder: Path, config: dict[str, Any]) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps(config))
    return load_model(str(folder))


def kept(model: ModelSpec, kv_bytes: int = 2, tp: int = 1) -> int:
    return sum(count * (mixer.kept_bytes(tp, kv_bytes) + mixer.index_bytes(kv_bytes)) for mixer, count in model.mixers)


def test_latent_attention(tmp_path: Path) -> None:
    """A token keeps 64 + 16 numbers in each of four layers; every GPU keeps all of them."""
    model = read(tmp_path, LATENT)
    attention = 256 * (96 + 80) + 96 * 8 * 48 + 64 * 8 * 56 + 8 * 24 * 256
    expert = 3 * 256 * 128
    assert model.linear_parameters == 4 * attention + 3 * 256 * 512 + 3 * (17 * expert + 16 * 256)
    assert model.active_linear_parameters == 4 * attention + 3 * 256 * 512 + 3 * (3 * expert + 16 * 256)
    assert kept(model) == kept(model, tp=8) == 4 * 80 * 2
    assert [kind.experts is not None for kind in model.layer_list] == [False, True, True, True]


def test_sparse_attention_keeps_a_key_for_its_index(tmp_path: Path) -> None:
    """An index key of 128 takes 132 bytes; in 8 bits the latent takes 64 and a scale for each 128, and 2 x 16."""
    index = {"index_n_heads": 4, "index_head_dim": 128, "index_topk": 512}
    model = read(tmp_path, LATENT | {"model_type": "deepseek_v32"} | index)
    assert kept(model) == 4 * (80 * 2 + 132)
    assert MODELS["deepseek-v3.2"].mixers[0][0].kept_bytes(8, 1) == 656
    shared = {"model_type": "glm_moe_dsa", "indexer_types": ["full", "shared", "shared", "full"]}
    model = read(tmp_path, LATENT | index | shared)
    assert kept(model) == 4 * 80 * 2 + 2 * 132
    own, taken = (kind.mixer for kind in model.layer_list[:2])
    assert isinstance(own, LatentAttention)
    assert isinstance(taken, LatentAttention)
    assert own.parameters(256) - taken.parameters(256) == 4 * 128 * 96 + 256 * (128 + 4)


def test_gated_delta_nets_keep_a_state(tmp_path: Path) -> None:
    """Keys 4 x 16, values 8 x 32: three inputs of 384 channels in 16 bits, and 8 states of 32 x 16 in 32."""
    model = read(tmp_path, DELTA_NET)
    kinds = [type(kind.mixer) for kind in model.layer_list]
    assert kinds == [StateLayer, GroupedAttention, StateLayer, GroupedAttention]
    state = model.layer_list[0].mixer
    assert isinstance(state, StateLayer)
    assert state.state_bytes(1, 2) == 3 * 384 * 2 + 8 * 32 * 16 * 4
    assert state.state_bytes(2, 2) == state.state_bytes(1, 2) // 2
    projections = 256 * (384 + 256) + 256 * 16 + 256 * 256
    attention = 256 * (2 * 512 + 2 * 128) + 512 * 256  # queries with a gate as wide
    assert model.linear_parameters == 2 * projections + 2 * attention + 4 * 3 * 256 * 512
    assert kept(model) == 2 * 2 * 2 * 64 * 2


def test_mamba_layers_stand_alone(tmp_path: Path) -> None:
    """One part a layer: Mamba-2, experts of a narrower width, attention, MLP of two matrices."""
    model = read(tmp_path, MAMBA)
    assert [kind.num_blocks for kind in model.layer_list] == [1, 1, 1, 1]
    mamba = 256 * (128 + 128 + 2 * 2 * 32 + 8) + 128 * 256
    experts = 8 * 2 * 128 * 64 + 2 * 256 * 128 + 2 * 256 * 96 + 8 * 256
    assert model.linear_parameters == mamba + experts + 256 * 2 * (256 + 64) + 2 * 256 * 512
    state = model.layer_list[0].mixer
    assert isinstance(state, StateLayer)
    assert state.state_bytes(1, 2) == 3 * (128 + 2 * 2 * 32) * 2 + 8 * 16 * 32 * 4
    assert state.state_bytes(4, 2) == 3 * (128 + 2 * 4 * 32) // 4 * 2 + 2 * 16 * 32 * 4, "each GPU has a group"
    listed = {"hybrid_override_pattern": None, "layers_block_type": ["mamba", "moe", "attention", "mlp"]}
    assert read(tmp_path, MAMBA | listed).layers == model.layers


def test_windows_with_heads_of_their_own() -> None:
    """Gemma 4 31B: 50 layers of 16 KV heads of 256, 10 of 4 heads of 512 whose values are their keys."""
    model = MODELS["gemma-4-31b"]
    assert kept(model) == 50 * 2 * 16 * 256 * 2 + 10 * 2 * 4 * 512 * 2
    full = model.layer_list[5].mixer
    assert isinstance(full, GroupedAttention)
    assert (full.head_size, full.num_kv_heads, full.window) == (512, 4, None)
    assert full.parameters(5376) == 5376 * (32 * 512 + 4 * 512 + 32 * 512)
    groups = plan_memory(engine_config(model="gemma-4-31b", gpu="h200-sxm", max_model_len=8192)).kv_groups
    assert groups == (*[KvGroup("window", 16, 1024, 10)] * 5, KvGroup("full", 32, None, 10))


def test_pruned_models_have_blocks_of_their_own(tmp_path: Path) -> None:
    block = {"attention": {"n_heads_in_group": 4, "no_op": False}, "ffn": {"ffn_mult": 2.0, "no_op": False}}
    none = {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.0, "no_op": False}}
    config = SMALL | {"model_type": "nemotron-nas", "block_configs": [block, none, block, block]}
    model = read(tmp_path, config)
    assert [kind.mixer is None for kind in model.layer_list] == [False, True, False, False]
    assert (model.num_kv_heads, model.layer_list[0].mlp and model.layer_list[0].mlp.width) == (2, 512)
    with pytest.raises(InputError, match=r"block_configs\[1\].attention.sparsify is not read"):
        read(tmp_path, config | {"block_configs": [block, {**none, "attention": {"sparsify": [1]}}, block, block]})


SPELLINGS: list[tuple[dict[str, Any], tuple[int, int, int, int]]] = [
    (
        {"model_type": "falcon", "num_attention_heads": 71, "hidden_size": 4544, "multi_query": True},
        (71, 1, 64, 4 * 4544),
    ),
    ({"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 4}, (8, 4, 32, 1024)),
    ({"model_type": "mpt", "d_model": 512, "n_heads": 4, "n_layers": 2, "expansion_ratio": 4}, (4, 4, 128, 2048)),
    (
        {
            **{"model_type": "dbrx", "d_model": 512, "n_heads": 4, "n_layers": 2, "max_seq_len": 2048},
            **{"attn_config": {"kv_n_heads": 2}},
            "ffn_config": {"ffn_hidden_size": 768, "moe_num_experts": 4, "moe_top_k": 2},
        },
        (4, 2, 128, 0),
    ),
    ({"dim": 512, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 64, "hidden_dim": 99}, (4, 2, 64, 99)),
]


@pytest.mark.parametrize(("config", "shape"), SPELLINGS)
def test_other_spellings(tmp_path: Path, config: dict[str, Any], shape: tuple[int, int, int, int]) -> None:
    usual = {} if "d_model" in config or "dim" in config else SMALL
    model = read(tmp_path, {"vocab_size": 1000, **usual, **config, "max_seq_len": 2048})
    assert (model.num_attention_heads, model.num_kv_heads, model.head_size, model.intermediate_size) == shape


def test_a_list_of_equal_numbers_is_that_number(tmp_path: Path) -> None:
    lists = {"moe_topk": [4] * 4, "num_shared_expert": [1] * 4, "moe_intermediate_size": [64] * 4}
    model = read(tmp_path, SMALL | {"model_type": "hunyuan_v1_moe", "intermediate_size": 64, "num_experts": 8} | lists)
    assert (model.experts_per_token, model.moe_intermediate_size, model.shared_expert_intermediate_size) == (4, 64, 64)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "gemma3n_text"}, "Gemma 3n"),
        ({"hybrid_override_pattern": "MX*-"}, "hybrid_override_pattern: X is not read"),
        ({"hybrid_override_pattern": "M*"}, "has to name each of the 4 layers"),
        ({"layers_block_type": ["conv"] * 4, "hybrid_override_pattern": None}, "layers_block_type: 'conv' is not read"),
        ({"mamba_ssm_cache_dtype": "float8"}, "mamba_ssm_cache_dtype: 'float8' is not read"),
    ],
)
def test_what_is_unknown_is_refused_by_its_name(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        read(tmp_path, MAMBA | change)


def test_a_nested_decoder_without_a_type_has_that_of_the_whole(tmp_path: Path) -> None:
    nested = {key: value for key, value in DELTA_NET.items() if key != "model_type"}
    model = read(tmp_path, {"model_type": "qwen3_next", "text_config": nested})
    assert sum(count for mixer, count in model.mixers if isinstance(mixer, StateLayer)) == 2
    with pytest.raises(InputError, match=r"thinker_config\.text_config\.hidden_size is missing"):
        read(tmp_path, {"model_type": "qwen3_omni_moe", "thinker_config": {"text_config": {"num_hidden_layers": 48}}})


@pytest.mark.parametrize("kind", ["roofline", "profile"])
@pytest.mark.parametrize("config", [LATENT, DELTA_NET, MAMBA], ids=["latent", "delta_net", "mamba"])
def test_steps_of_every_kind_cost_something(tmp_path: Path, config: dict[str, Any], kind: Any) -> None:
    """A run of decodes is its steps, and a longer context is never cheaper."""
    read(tmp_path, config)
    engine = engine_config(model=str(tmp_path), gpu="h100-sxm", max_model_len=4096)
    cost = build_step_cost(engine, LatencyConfig(kind=kind))
    run = cost.decode_run_ns(4, 4000, 6).tolist()
    assert run == [int(cost.decode_run_ns(4, 4000 + 4 * step, 1)[0]) for step in range(6)]
    assert run == sorted(run)
    assert cost.decode_run_ns(64, 64000, 1)[0] > run[0]


def test_memory_of_a_model_with_states_as_vllm_aligns_it() -> None:
    """Qwen3.5 27B on one GPU: a state of 3.2 MB takes the place of 784 tokens of 4 KiB; three groups of states to one
    of attention. A request of 8,192 tokens takes 11 blocks of attention and two of each group of states."""
    engine = engine_config(model="qwen3.5-27b", gpu="h200-sxm", max_model_len=8192)
    plan = plan_memory(engine)
    assert plan.kv_groups == (*[KvGroup("state", 784, None, 16)] * 3, KvGroup("full", 784, None, 16))
    assert (plan.block_size, plan.max_blocks_per_request) == (784, 11 + 3 * 2)
    without = plan_memory(engine.model_copy(update={"enable_prefix_caching": False}))
    assert without.max_blocks_per_request == 11 + 3


def test_kv_tokens_and_weights_as_vllm_logged_them() -> None:
    """gpt-oss on H100s (llm-d-planner's logs of 0.19, vllm-project/vllm issue 27508) and Gemma 4 31B on an H200 (pull
    request 43308's engine): logged KV tokens within 1 %, weights within 2 %."""
    shared = {"gpu": "h100-sxm", "dtype": "auto", "max_num_seqs": 1024, "max_model_len": 8192}
    small = plan_memory(
        engine_config(
            **{**shared, "model": "gpt-oss-20b", "tensor_parallel_size": 2, "vllm_version": "0.19.0"},
            gpu_memory_utilization=0.9,
            max_num_batched_tokens=8192,
        )
    )
    assert small.logged_kv_tokens == pytest.approx(2_591_776, rel=0.01)
    assert small.weights_bytes / (1 << 30) == pytest.approx(7.01, rel=0.02)
    large = plan_memory(
        engine_config(
            **{**shared, "model": "gpt-oss-120b", "vllm_version": "0.11.0"},
            gpu_memory_utilization=0.95,
            max_num_batched_tokens=1024,
        )
    )
    assert large.weights_bytes / (1 << 30) == pytest.approx(65.97, rel=0.005)
    gemma = plan_memory(
        engine_config(
            model="gemma-4-31b",
            gpu="h200-sxm",
            gpu_memory_utilization=0.92,
            max_num_seqs=1024,
            max_num_batched_tokens=8192,
            max_model_len=262144,
            vllm_version="0.20.0",
        )
    )
    assert gemma.logged_kv_tokens == pytest.approx(626_949, rel=0.01)


@pytest.mark.parametrize("odd", [{}, [], None, 3])
def test_a_vision_tower_whose_type_is_no_text_has_a_plain_mlp(odd: Any) -> None:
    tower = {"hidden_size": 64, "num_hidden_layers": 2, "patch_size": 16, "intermediate_size": 128}
    found = vision_spec({"vision_config": {**tower, "model_type": odd}}, 256)
    assert found == vision_spec({"vision_config": tower}, 256)
    assert found is not None


@pytest.mark.parametrize("odd", [{}, [], 3, "float8"])
def test_a_state_of_no_known_format_is_refused_by_its_key(tmp_path: Path, odd: Any) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(DELTA_NET | {"mamba_ssm_dtype": odd}))
    with pytest.raises(InputError, match=r"mamba_ssm_dtype: .* is not read"):
        load_model(str(path))


@pytest.mark.parametrize("odd", [0.5, [], [None], [1, "a"], [[1]], [1, 1, 2]])
def test_lists_of_kimis_layers_that_do_not_name_each_are_refused(tmp_path: Path, odd: Any) -> None:
    attention = {
        "full_attn_layers": [4],
        "kda_layers": odd,
        "num_heads": 4,
        "head_dim": 64,
        "short_conv_kernel_size": 4,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LATENT | {"model_type": "kimi_linear", "linear_attn_config": attention}))
    with pytest.raises(InputError, match="have to name each of the 4 layers"):
        load_model(str(path))
