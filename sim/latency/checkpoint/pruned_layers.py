"""Layers of models that were pruned block by block, each with sizes of its own: Llama-Nemotron (``block_configs``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sim.latency.checkpoint.grouped_layers import attention_of
from sim.latency.checkpoint.keys import Keys
from sim.latency.checkpoint.mlp_layers import matrices_each
from sim.latency.layer_kinds import LayerKind, Mixer, Mlp

WIDTH_MULTIPLE = 256


def mlp_width(multiple: float, hidden: int) -> int:
    """Width of an MLP from its ``ffn_mult``: two thirds of the product, rounded up: 5.25 x 8,192 gives 28,672."""
    width = int(2 * multiple * hidden / 3)
    return -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


def pruned_layers(config: Keys, layers: int, hidden: int) -> list[LayerKind]:
    """One kind for each entry of ``block_configs``."""
    blocks = config.listing("block_configs", layers) or []
    attention = attention_of(config, hidden)
    found: list[LayerKind] = []
    for number, block in enumerate(blocks):
        sides: dict[str, Mapping[str, Any]] = {}
        for side in ("attention", "ffn"):
            inner = block.get(side) if isinstance(block, Mapping) else None
            sides[side] = inner if isinstance(inner, Mapping) else {}
            for odd in ("replace_with_linear", "sparsify", "window_length", "num_sink_tokens"):
                if sides[side].get(odd):
                    config.problem(f"block_configs[{number}].{side}.{odd} is not read")
        mixer: Mixer | None = None
        if not sides["attention"].get("no_op"):
            group = sides["attention"].get("n_heads_in_group")
            if not isinstance(group, int) or group < 1 or attention.num_heads % group:
                config.problem(f"block_configs[{number}].attention.n_heads_in_group: found {group!r}")
                group = 1
            mixer = replace(attention, num_kv_heads=attention.num_heads // group)
        mlp = None
        if not sides["ffn"].get("no_op"):
            multiple = sides["ffn"].get("ffn_mult")
            width = sides["ffn"].get("intermediate_size")
            if not isinstance(width, int):
                if not isinstance(multiple, int | float) or isinstance(multiple, bool) or multiple <= 0:
                    config.problem(f"block_configs[{number}].ffn.ffn_mult: found {multiple!r}")
                    multiple = 1.0
                width = mlp_width(multiple, hidden)
            mlp = Mlp(width=width, matrices_each=matrices_each(config))
        found.append(LayerKind(mixer=mixer, mlp=mlp))
    return found
