"""Which layers share blocks, and how many blocks that makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engines import engine_config

from sim.cluster.deployment import scheduler_settings
from sim.errors import InputError
from sim.latency.kv_layout import KvGroup, why_not_followed
from sim.latency.kv_pages import KvPool
from sim.latency.memory import plan_memory
from sim.latency.models import load_model

CONFIG: dict[str, Any] = {
    "model_type": "gemma3_text",
    "num_hidden_layers": 12,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 2048,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "sliding_window": 128,
}
ALTERNATING = ["sliding_attention", "full_attention"] * 6
FIVE_TO_ONE = [*["sliding_attention"] * 5, "full_attention"] * 2
FULL_FIRST = ["full_attention", *["sliding_attention"] * 11]


def written(folder: Path, layer_types: list[str]) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps({**CONFIG, "layer_types": layer_types}))
    return str(path)


def shapes(groups: tuple[KvGroup, ...]) -> list[tuple[str, int]]:
    return [(group.kind, group.num_layers) for group in groups]


@pytest.mark.parametrize(
    ("layer_types", "expected"),
    [
        (ALTERNATING, [("window", 6), ("full", 6)]),
        (FIVE_TO_ONE, [("window", 2)] * 5 + [("full", 2)]),
        (FULL_FIRST, [("full", 1), *[("window", 1)] * 11]),
        (["sliding_attention"] * 12, []),
        (["full_attention"] * 12, []),
    ],
)
def test_groups_are_as_large_as_the_smaller_kind(
    layer_types: list[str], expected: list[tuple[str, int]], tmp_path: Path
) -> None:
    """The kind that the model begins with comes first, as vLLM's does."""
    assert shapes(KvPool.of(load_model(written(tmp_path, layer_types)), 1, 2, 2, 16).kv_groups) == expected


def test_a_block_is_of_one_group(tmp_path: Path) -> None:
    """A request of 32,768 tokens takes 2,048 blocks of full attention; of a window of 128, with 2 x 2,048 tokens in
    flight, ceil(4,223 / 16) + 1."""
    given = {"gpu": "a100-80gb-sxm", "max_model_len": 32768, "max_num_batched_tokens": 2048, "async_scheduling": True}
    model = written(tmp_path, ALTERNATING)
    plan = plan_memory(engine_config(model=model, **given))
    (tmp_path / "all").mkdir()
    full = plan_memory(engine_config(model=written(tmp_path / "all", ["full_attention"] * 12), **given))
    assert plan.num_gpu_blocks == pytest.approx(2 * full.num_gpu_blocks, abs=1)
    assert plan.max_blocks_per_request == plan.blocks_of_longest == 2048 + 265
    assert plan.logged_kv_tokens == int(plan.num_gpu_blocks / 2313 * 32768)
    settings = scheduler_settings(engine_config(model=model, **given), plan)
    assert settings.kv_groups == (KvGroup("window", 16, 128, 6), KvGroup("full", 16, None, 6))


@pytest.mark.parametrize("given", [{"kv": "contiguous"}, {"preemption": "swap"}])
def test_baselines_keep_all_in_blocks_of_all_layers(given: dict[str, Any], tmp_path: Path) -> None:
    engine = engine_config(model=written(tmp_path, ALTERNATING), gpu="a100-80gb-sxm", max_model_len=8192, **given)
    plan = plan_memory(engine)
    assert plan.kv_groups == ()
    assert any("they keep all KV here" in note for note in plan.notes)


STATES: dict[str, Any] = {
    **CONFIG,
    "model_type": "qwen3_next",
    "full_attention_interval": 4,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
    "sliding_window": None,
}


def test_states_have_groups_and_no_drafts(tmp_path: Path) -> None:
    """A full layer for three with a state: one group of each kind for as many layers, with blocks of one size."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(STATES))
    given = {"model": str(path), "gpu": "a100-80gb-sxm", "max_model_len": 8192}
    groups = plan_memory(engine_config(**given)).kv_groups
    assert shapes(groups) == [("state", 3), ("state", 3), ("state", 3), ("full", 3)]
    assert len({group.block_size for group in groups}) == 1
    ngrams = {"method": "ngram", "num_speculative_tokens": 2, "acceptance": 0.5}
    with pytest.raises(InputError, match=r"engine\.model: .*: drafts beside layers with a state are not simulated"):
        plan_memory(engine_config(**given, speculative=ngrams))


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        ((KvGroup("full", 4), KvGroup("state", 8)), "inside a block of states"),
        ((KvGroup("full", 8), KvGroup("state", 4, checkpoint_alignment=1)), "middle of a chunk"),
        ((KvGroup("full", 8), KvGroup("chunk", 4, 16)), "chunks of attention"),
    ],
)
def test_groups_that_are_not_followed_are_without_a_prefix_cache(groups: tuple[KvGroup, ...], told: str) -> None:
    reason = why_not_followed(groups, has_prefix_cache=True, has_drafts=False)
    assert reason is not None
    assert told in reason
    assert reason.endswith("set engine.enable_prefix_caching: false")
    assert why_not_followed(groups, has_prefix_cache=False, has_drafts=False) is None
