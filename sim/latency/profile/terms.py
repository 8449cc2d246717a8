"""Where the time of recorded steps went, by term of the step cost: for ``steps.parquet`` and the summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sim.latency.tables import Table

IntColumn = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

TERMS = (
    "matrices",
    "elementwise",
    "experts",
    "all_reduce",
    "all_gather",
    "send_receive",
    "launches",
    "lm_head",
    "sampling",
    "step_overhead",
    "prefill_attention",
    "decode_attention",
    "swap",
)
"""All terms of a step: by its tokens, by its rows (sampled, drafts included), and the others. ``lm_head`` has the final
norm and the gathering of logits with it, ``step_overhead`` the small kernels of a step outside its layers."""


def check_terms(names: Set[str]) -> None:
    """Raises ValueError for a name that is no term."""
    if unknown := sorted(names - set(TERMS)):
        raise ValueError(f"no term of a step: {', '.join(unknown)}; there are {', '.join(TERMS)}")


class CountTerms:
    """Terms that depend on a count alone (tokens, rows): what is charged at each count, and by which terms."""

    def __init__(
        self, charged: Table, times_ns: Callable[[Floats], dict[str, Floats]], without: Set[str], *, least_ns: int
    ) -> None:
        """``charged``: with all terms. ``without``: those that cost nothing."""
        self._charged = charged
        self._times_ns = times_ns
        self._without = without
        self._least_ns = least_ns
        self._known: dict[int, int] = {}
        self.ns: Callable[[int], int] = self._part_ns if without else charged.ns
        """What is charged at a count."""

    def by_term(self, counts: Sequence[int]) -> dict[str, IntColumn]:
        """Nanoseconds by term at ``counts``, whose sum is ``ns`` there."""
        terms = _with_rest(self._times_ns, counts, [self._charged.ns(count) for count in counts])
        return {name: times for name, times in terms.items() if name not in self._without}

    def _part_ns(self, count: int) -> int:
        known = self._known.get(count)
        if known is None:
            total = sum(int(times[0]) for times in self.by_term([count]).values())
            known = self._known[count] = max(self._least_ns, total)
        return known


def _with_rest(
    times_ns: Callable[[Floats], dict[str, Floats]], counts: Sequence[int], charged_ns: Sequence[int]
) -> dict[str, IntColumn]:
    """Whole nanoseconds by term at ``counts``, whose sum is what is charged there: the first term has what rounding and
    the rule that more never costs less leave over."""
    times = times_ns(np.array(counts, dtype=np.float64))
    whole = {name: np.rint(each).astype(np.int64) for name, each in times.items()}
    whole[next(iter(whole))] += np.array(charged_ns, dtype=np.int64) - np.sum(list(whole.values()), axis=0)
    return whole


class CostByTerm(Protocol):
    """The parts of a step cost that recorded steps are divided into (``cost.ProfileCost`` has them)."""

    @property
    def token_terms(self) -> CountTerms:
        """Terms by the tokens of a step."""
        ...

    @property
    def row_terms(self) -> CountTerms:
        """Terms by the rows sampled in a step."""
        ...

    def swaps_ns(self, num_bytes: IntColumn) -> IntColumn:
        """Time of moving these bytes between host and GPU."""
        ...

    def prefill_attentions_ns(self, num: int, pairs: IntColumn, context: IntColumn, tokens: IntColumn) -> IntColumn:
        """Attention of steps with ``num`` chunks each."""
        ...


def step_terms(cost: CostByTerm, columns: Mapping[str, IntColumn]) -> dict[str, IntColumn]:
    """Nanoseconds by term of each row; the terms of a row sum to its ``gpu_ns``.

    ``columns`` are those of ``RunRecord.steps``: a row is ``num_steps`` steps whose decode context grows. ``swap`` is
    there where the engine can swap.
    """
    steps, decodes, prefills = columns["num_steps"], columns["num_decodes"], columns["num_prefills"]
    rows = prefills + decodes
    tokens = columns["num_prefill_tokens"] + decodes
    if "num_draft_tokens" in columns:
        rows = rows + columns["num_draft_tokens"]
        tokens = tokens + columns["num_draft_tokens"]
    tokens = columns.get("padded_tokens", tokens)  # of ranks that step together
    terms = {
        **_by_count(cost.token_terms, tokens, steps),
        **_by_count(cost.row_terms, rows, steps),
    }
    if "swap_bytes" in columns:
        terms["swap"] = cost.swaps_ns(columns["swap_bytes"])
    attention = np.zeros_like(steps)
    wanted = ("prefill_attention_pairs", "prefill_context_tokens", "num_prefill_tokens")
    for count in np.flatnonzero(np.bincount(prefills)).tolist():
        if count:
            chosen = np.flatnonzero(prefills == count)
            attention[chosen] = cost.prefill_attentions_ns(count, *(columns[name][chosen] for name in wanted))
    terms["prefill_attention"] = attention * steps
    terms["decode_attention"] = columns["gpu_ns"] - np.sum(list(terms.values()), axis=0, dtype=np.int64)
    return terms


def _by_count(terms: CountTerms, counts: IntColumn, steps: IntColumn) -> dict[str, IntColumn]:
    """``terms`` of recorded steps, asked once for each count that occurs."""
    present = np.flatnonzero(np.bincount(counts)).tolist()
    place = np.zeros(int(counts.max(initial=0)) + 1, dtype=np.int64)
    place[present] = np.arange(len(present))
    at = place[counts]
    return {name: times[at] * steps for name, times in terms.by_term(present).items()}
