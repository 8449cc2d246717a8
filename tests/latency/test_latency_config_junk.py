"""Configs with a value of the wrong kind in any one place: read, or refused in words."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
from test_latency_checkpoint import DELTA_NET, LATENT, MAMBA, SMALL

from sim.errors import InputError
from sim.latency.hf_config import read_values

JUNK: tuple[Any, ...] = ([], {}, "x", -1, 1.5, True, [[1]], {"a": [1]}, 0, [None], None, "re:[")
KIMI: dict[str, Any] = SMALL | {
    **{key: value for key, value in LATENT.items() if key not in SMALL},
    "model_type": "kimi_linear",
    "linear_attn_config": {
        "full_attn_layers": [4],
        "kda_layers": [1, 2, 3],
        "num_heads": 8,
        "head_dim": 32,
        "short_conv_kernel_size": 4,
    },
}
LLAMA: dict[str, Any] = SMALL | {"model_type": "llama", "intermediate_size": 512}
GROUP: dict[str, Any] = {
    "targets": ["Linear", "re:.*down_proj"],
    "weights": {"type": "int", "num_bits": 4, "group_size": 32, "strategy": "group"},
    "input_activations": None,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "latent": LATENT | {"index_topk": 64, "index_n_heads": 4, "index_head_dim": 32, "indexer_types": ["full"] * 4},
    "delta net": DELTA_NET | {"layer_types": ["linear_attention", "full_attention"] * 2},
    "mamba": MAMBA,
    "kimi": KIMI,
    "vision": LLAMA | {"vision_config": {"model_type": "x", "hidden_size": 64, "depth": 2, "patch_size": 14}},
    "windows": LLAMA | {"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gptq": LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
    "fp8": LLAMA | {"quantization_config": {"quant_method": "fp8", "modules_to_not_convert": ["lm_head"]}},
    "modelopt": LLAMA | {"quantization_config": {"quant_method": "modelopt", "config_groups": {"group_0": GROUP}}},
    "compressed": LLAMA
    | {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": GROUP},
            "ignore": ["re:.*gate", "lm_head"],
        }
    },
}


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key and every entry of a list, of all sections."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*before, key)
        yield from places(inner, (*before, key))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_value_of_the_wrong_kind_is_no_traceback(name: str) -> None:
    refused = 0
    for place in places(CONFIGS[name]):
        for junk in JUNK:
            config = deepcopy(CONFIGS[name])
            section: Any = config
            for key in place[:-1]:
                section = section[key]
            section[place[-1]] = junk
            try:
                read_values(config, file="config.json", name=name)
            except InputError:
                refused += 1
    assert refused > 20


def test_the_pattern_that_is_none_is_named() -> None:
    section = {**CONFIGS["compressed"]["quantization_config"], "ignore": ["re:["]}
    with pytest.raises(InputError, match=r"'\[' is no pattern of names"):
        read_values(LLAMA | {"quantization_config": section}, file="config.json", name="x")


def test_layers_with_experts_need_their_number() -> None:
    config = {key: value for key, value in MAMBA.items() if key != "n_routed_experts"}
    with pytest.raises(InputError, match="n_routed_experts is missing"):
        read_values(config, file="config.json", name="x")
