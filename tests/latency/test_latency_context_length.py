"""The longest context that a config.json states, by its keys and its rope scaling."""

from __future__ import annotations

from typing import Any

import pytest

from sim.latency.context_length import context_lengths

BASE: dict[str, Any] = {"model_type": "llama", "max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, (4096, 4096)),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, (16384, 16384)),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, (8192, 8192)),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0}}, (16384, 16384)),
        (
            {"rope_parameters": {"full": {"rope_type": "linear", "factor": 8}, "sliding": {"rope_type": "default"}}},
            (32768,) * 2,
        ),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, (4096, 4096)),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, (4096, 4096)),
        ({"rope_scaling": {"type": "linear", "factor": None}}, (4096, 4096)),
        ({"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, (4096, 4096)),
        (
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope", "long_factor": [1.0]},
            },
            (131072, 4096),
        ),
        ({"original_max_position_embeddings": 1024}, (4096, 4096)),
        ({"max_seq_length": 2048}, (2048, 2048)),
        ({"model_max_length": 8192}, (8192, 8192)),
        ({"max_position_embeddings": None}, (None, None)),
    ],
)
def test_as_vllm_reads_it(more: dict[str, Any], expected: tuple[int | None, int | None]) -> None:
    assert context_lengths(BASE | more) == expected
