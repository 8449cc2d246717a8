"""Where the time of recorded steps went, by term of the step cost: for ``steps.parquet`` and the summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from sim.latency.profile.cost import ProfileCost

IntColumn = npt.NDArray[np.int64]


def step_terms(cost: ProfileCost, columns: Mapping[str, IntColumn]) -> dict[str, IntColumn]:
    """Nanoseconds by term of each row; the terms of a row sum to its ``gpu_ns``.

    ``columns`` are those of ``RunRecord.steps``: a row is ``num_steps`` steps whose decode context grows. What a step
    copies for swapped requests counts as decode attention.
    """
    steps, decodes, prefills = columns["num_steps"], columns["num_decodes"], columns["num_prefills"]
    rows = prefills + decodes
    tokens = columns["num_prefill_tokens"] + decodes
    if "num_draft_tokens" in columns:
        rows = rows + columns["num_draft_tokens"]
        tokens = tokens + columns["num_draft_tokens"]
    tokens = columns.get("padded_tokens", tokens)  # of ranks that step together
    sizes = np.flatnonzero(np.bincount(tokens))
    by_size = {
        name: np.rint(times).astype(np.int64) for name, times in cost.token_terms_ns(sizes.astype(np.float64)).items()
    }
    charged = np.array([cost.tokens_ns(size) for size in sizes.tolist()], dtype=np.int64)
    by_size["matrices"] += charged - np.sum(list(by_size.values()), axis=0, dtype=np.int64)
    place = np.zeros(int(tokens.max(initial=0)) + 1, dtype=np.int64)
    place[sizes] = np.arange(len(sizes))
    at = place[tokens]
    terms = {name: times[at] * steps for name, times in by_size.items()}

    terms["head_and_sampler"] = _by_count(cost.rows_ns, rows) * steps
    attention = np.zeros_like(steps)
    wanted = ("prefill_attention_pairs", "prefill_context_tokens", "num_prefill_tokens")
    for count in np.flatnonzero(np.bincount(prefills)).tolist():
        if count:
            chosen = np.flatnonzero(prefills == count)
            attention[chosen] = cost.prefill_attentions_ns(count, *(columns[name][chosen] for name in wanted))
    terms["prefill_attention"] = attention * steps
    terms["decode_attention"] = columns["gpu_ns"] - np.sum(list(terms.values()), axis=0, dtype=np.int64)
    return terms


def _by_count(value: Callable[[int], int], counts: IntColumn) -> IntColumn:
    """``value`` of each count, asked once for each that occurs."""
    known = np.zeros(int(counts.max(initial=0)) + 1, dtype=np.int64)
    present = np.flatnonzero(np.bincount(counts))
    known[present] = [value(count) for count in present.tolist()]
    result: IntColumn = known[counts]
    return result
