"""A sliding window: how much KV it keeps, and how much of a step's context its attention sees.

Queries are bounded together, not one by one: in a step, a request shorter than the window leaves room to a longer one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from sim.latency.base import StepShape

IntColumn = npt.NDArray[np.int64]


def max_blocks_per_request(sliding_window: int, max_in_flight_tokens: int, max_model_len: int, block_size: int) -> int:
    """Most blocks that one request ever holds: ``SlidingWindowSpec.max_admission_blocks_per_request`` of
    ``vllm/v1/kv_cache_interface.py`` (0.32.0).

    The window less the token that looks, and what is being computed; one block more, since the window seldom
    begins where a block does.
    """
    num_tokens = min(sliding_window - 1 + max_in_flight_tokens, max_model_len)
    return -(-num_tokens // block_size) + 1


def within(shape: StepShape, window: int) -> StepShape:
    """``shape`` with no more context than ``window`` tokens for each query."""
    tokens = shape.num_prefill_tokens
    return replace(
        shape,
        prefill_attention_pairs=min(shape.prefill_attention_pairs, 2 * tokens * window),
        prefill_context_tokens=min(shape.prefill_context_tokens, tokens + shape.num_prefills * window),
        decode_context_tokens=min(shape.decode_context_tokens, shape.num_decodes * window),
        verify_attention_pairs=min(shape.verify_attention_pairs, (shape.num_decodes + shape.num_draft_tokens) * window),
    )


def prefill_within(columns: Mapping[str, IntColumn], window: int | None) -> Mapping[str, IntColumn]:
    """Recorded steps with their prefill chunks and drafts bounded as ``within`` bounds one; decodes as they were."""
    if window is None:
        return columns
    tokens = columns["num_prefill_tokens"]
    bounded = {
        "prefill_attention_pairs": np.minimum(columns["prefill_attention_pairs"], 2 * tokens * window),
        "prefill_context_tokens": np.minimum(
            columns["prefill_context_tokens"], tokens + columns["num_prefills"] * window
        ),
    }
    if "verify_attention_pairs" in columns:
        queries = columns["num_decodes"] + columns["num_draft_tokens"]
        bounded["verify_attention_pairs"] = np.minimum(columns["verify_attention_pairs"], queries * window)
    return {**columns, **bounded}


def decode_context_within(columns: Mapping[str, IntColumn], num_steps: IntColumn, window: int | None) -> IntColumn:
    """Tokens of KV that decodes see in all steps of each row, whose context grows by ``num_decodes`` a step."""
    decodes, context = columns["num_decodes"], columns["decode_context_tokens"]
    below = num_steps
    if window is not None:
        room = np.maximum(decodes * window - context, 0)
        below = np.minimum(num_steps, -(-room // np.maximum(decodes, 1)))
    seen: IntColumn = context * below + decodes * (below * (below - 1) // 2)
    return seen if window is None else seen + (num_steps - below) * decodes * window
