"""Results of other load generators: what kind a file is, and what all of them have in common.

Each kind has a file: ``sglang_results.py``, ``guidellm_results.py``, ``inference_perf_results.py``,
``aiperf_results.py``. Figures go by the keys of ``vllm bench serve``, requests become observations as of
``simrun observe``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sim.errors import InputError, Problem
from sim.live.observation_file import LARGEST_COUNT, NS_PER_S, Observation

MOST_PROBLEMS = 20
LATEST_S = 4e9
"""Beyond it a number is no instant: seconds since 1970 or since the machine started."""
LONGEST_MS = 1e10
PERCENTILES = ("p50", "p90", "p95", "p99")


@dataclass(slots=True)
class ToolRun:
    """One run of a load generator."""

    tool: str
    """Its name, for messages."""
    which: str = ""
    """What messages call it among several of a file."""
    observations: list[Observation] | None = None
    """Its requests; None where the file has statistics alone, or not when they were sent."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Statistics that the file states, by the keys of ``vllm bench serve``."""
    why_no_requests: str = ""
    """What to say where requests are needed and there are none."""
    has_gaps: bool = True
    """Whether it says when each token came."""
    notes: list[str] = field(default_factory=list)


def completed(row: int, request_id: str, sent_ns: int, token_ns: list[int], inputs: Any, outputs: Any) -> Observation:
    """A request whose stream came to its end. Raises ValueError where that cannot be."""
    tokens = count("output tokens", outputs)
    seen = Observation(row, request_id, sent_ns, count("input tokens", inputs), max_tokens=max(tokens, 1))
    seen.sent_ns, seen.token_ns, seen.end_ns = sent_ns, token_ns, token_ns[-1] if token_ns else None
    seen.output_tokens, seen.status = tokens, "completed"
    seen.check()
    return seen


def failed(row: int, request_id: str, inputs: Any, reason: Any) -> Observation:
    """A request that did not complete."""
    is_count = type(inputs) is int and 0 <= inputs < LARGEST_COUNT
    seen = Observation(row, request_id, 0, inputs if is_count else 0, max_tokens=1)
    seen.reason = str(reason or "").strip().rpartition("\n")[2][:200] or "no tokens came, and no reason is given"
    return seen


def collected(
    rows: Iterable[tuple[int, Any]], make: Callable[[int, Any], Observation], file: str, which: str
) -> list[Observation]:
    """An observation of each row, counted from when the first was sent. Raises InputError with every row that cannot
    be."""
    found, problems = [], []
    for row, told in rows:
        try:
            found.append(make(row, told))
        except ValueError as error:
            problems.append(Problem(f"{which}request {row}: {error}", file))
        except (TypeError, AttributeError, KeyError):
            problems.append(Problem(f"{which}request {row}: not of the form that the tool writes", file))
    if problems:
        raise InputError(problems[:MOST_PROBLEMS])
    from_the_first(found)
    return found


def from_the_first(rows: Sequence[Observation]) -> None:
    """Count all instants from the first request that completed."""
    first_ns = min((each.sent_ns for each in rows if each.sent_ns is not None), default=0)
    for each in rows:
        if each.sent_ns is None or each.end_ns is None:
            continue
        each.due_ns -= first_ns
        each.sent_ns -= first_ns
        each.end_ns -= first_ns
        each.token_ns = [instant - first_ns for instant in each.token_ns]


def count(what: str, value: Any) -> int:
    """``value`` as a number of tokens. Raises ValueError."""
    whole = isinstance(value, float) and value.is_integer()
    if isinstance(value, bool) or not (isinstance(value, int) or whole) or not 0 <= value < LARGEST_COUNT:
        raise ValueError(f"{what} must be a whole number, found {value!r:.60}")
    return int(value)


def instant_ns(what: str, value: Any) -> int:
    """Seconds on some clock to nanoseconds. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LATEST_S:
        raise ValueError(f"{what} must be seconds, found {value!r:.60}")
    return round(value * NS_PER_S)


def number(value: Any) -> float | None:
    """A number that can be a figure; None for anything else, also for what is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return float(value)


def section(document: Any, *path: str) -> Mapping[str, Any]:
    """The object at ``path``; an empty one where there is none."""
    for key in path:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document if isinstance(document, Mapping) else {}


def statistics(told: Mapping[str, Any], metric: str, scale: float, names: Mapping[str, str]) -> dict[str, float]:
    """Statistics of a metric in ms by the keys of ``vllm bench serve``; ``names`` maps its names to the file's."""
    found = {}
    for ours, theirs in names.items():
        value = number(told.get(theirs))
        if value is not None:
            found[f"{ours}_{metric}_ms"] = value * scale
    return found
