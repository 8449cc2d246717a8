"""KV memory that is taken and holds no token: the unused end of each request's last block, over time.

Only full blocks are shared, so a request's last block is its own, and what is unused of it follows from its tokens:
with blocks of 16, a request of 40 tokens has 3 blocks and 8 unused places. Tokens are taken to come at an even pace
between the first and the last; before the first, the whole prompt counts as held. A preempted request counts as if it
had kept its blocks. Layers of several groups have a last block each.
"""

from __future__ import annotations

import numpy as np

from sim.results.metrics import FloatColumn, IntColumn
from sim.results.record import NOT_YET, RunRecord


def mean_unused_slots(record: RunRecord, window: tuple[int, int]) -> float | None:
    """Places for tokens that are taken and unused, averaged over ``window``; None where it has no length."""
    length_ns = window[1] - window[0]
    if length_ns <= 0:
        return None
    columns = record.requests
    ran = (columns["scheduled_ns"] != NOT_YET) & (columns["end_ns"] != NOT_YET)
    scheduled, first, end, prompt, output = (
        columns[name][ran] for name in ("scheduled_ns", "first_token_ns", "end_ns", "input_tokens", "output_tokens")
    )
    first = np.where(first == NOT_YET, end, first)
    reserved = record.reserved_tokens_per_request
    later = np.maximum(output - 1, 0)
    total = 0.0
    for block_size in record.group_block_sizes:
        while_decoding: FloatColumn = np.zeros(len(later))
        unused_sum = _sum_of_unused(prompt + later, block_size, reserved) - _sum_of_unused(prompt, block_size, reserved)
        np.divide(unused_sum, later, out=while_decoding, where=later > 0)
        before = _unused(prompt, block_size, reserved)
        total += float(np.sum(before * (first - scheduled).astype(np.float64) + while_decoding * (end - first)))
    return total / length_ns


def _unused(tokens: IntColumn, block_size: int, reserved: int) -> IntColumn:
    held: IntColumn = -(-np.maximum(tokens, reserved) // block_size) * block_size
    return held - tokens


def _sum_of_unused(tokens: IntColumn, block_size: int, reserved: int) -> IntColumn:
    """Unused places of requests of 1, 2, ... ``tokens`` tokens, added up. Example: 15 + 14 + ... + 0 for 16 of 16."""
    if reserved:
        held = -(-reserved // block_size) * block_size
        return tokens * held - tokens * (tokens + 1) // 2
    full, rest = tokens // block_size, tokens % block_size
    return full * (block_size * (block_size - 1) // 2) + rest * block_size - rest * (rest + 1) // 2
