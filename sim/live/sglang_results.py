"""Results of SGLang's ``bench_serving``: an object per run, appended to a JSONL file.

Keys as sgl-project/sglang's ``python/sglang/bench_serving.py`` (since 0.5.2x ``benchmark/serving.py``) writes them:
statistics as of ``vllm bench serve``, with ``e2e_latency`` for its ``e2el`` and ``total_throughput`` for its
``total_token_throughput``; with ``--output-details`` the lists ``input_lens``, ``output_lens``, ``ttfts``, ``itls`` and
``errors`` too. It writes no ``start_times``. ``request_rate`` is infinite where requests are sent as soon as the cap on
what is under way, ``max_concurrency``, allows: a semaphore that serves in order, behind which a request's times begin.
So when each was sent then follows from how long the others took.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from typing import Any

from sim.live.observation_file import NS_PER_S, Observation
from sim.live.other_tools import ToolRun, collected, completed, count, failed

TOOL = "SGLang's bench_serving"
OWN_KEYS = ("dataset_name", "server_info", "total_output_tokens_retokenized", "mean_e2e_latency_ms", "accept_length")
"""Keys that vLLM's benchmark does not write."""
LISTS = ("input_lens", "output_lens", "ttfts", "itls", "errors")
LONGEST_S = 1e7


def is_sglang(result: Mapping[str, Any]) -> bool:
    """Whether SGLang's benchmark wrote this result."""
    return "start_times" not in result and any(key in result for key in OWN_KEYS)


def read_sglang(file: str, result: Mapping[str, Any], which: str) -> ToolRun:
    """One result. Raises InputError for lists that cannot be."""
    run = ToolRun(TOOL, which, figures=_figures(result))
    if str(result.get("backend", "")).startswith("sglang"):
        run.notes.append("measured on SGLang, which is another engine than the one that is simulated")
    missing = [key for key in LISTS if not isinstance(result.get(key), list)]
    if missing:
        run.why_no_requests = (
            f"a result of {TOOL} without {', '.join(missing)}: it has statistics alone. Run it with --output-details; "
            "`simrun fit` takes statistics"
        )
        return run
    lengths = {key: len(result[key]) for key in LISTS}
    if len(set(lengths.values())) > 1:
        run.why_no_requests = f"a result of {TOOL} whose lists are not of one length: {lengths}"
        return run
    rate = result.get("request_rate")
    is_unbounded = rate == "inf" or (isinstance(rate, float) and math.isinf(rate))
    if not is_unbounded:
        run.why_no_requests = (
            f"{TOOL} writes no start times, and with a request_rate of {rate} nothing says when requests were sent. "
            "Measure with --request-rate inf and --max-concurrency, with the benchmark of vLLM 0.15 or later, or with "
            "`simrun observe`; `simrun fit` takes this file, with the arrivals of the scenario"
        )
        return run
    run.observations = _requests(file, result, which)
    run.notes.append(
        f"{TOOL} writes no start times: with request_rate inf they follow from max_concurrency "
        f"{result.get('max_concurrency') or '(none: all at once)'} and from how long requests took"
    )
    return run


def _figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """The statistics under the keys of ``vllm bench serve``; failed requests where the lists say so."""
    renamed = {key.replace("_e2e_latency_ms", "_e2el_ms"): value for key, value in result.items()}
    if "total_throughput" in result:
        renamed["total_token_throughput"] = result["total_throughput"]
    errors, done = result.get("errors"), result.get("completed")
    if isinstance(errors, list) and type(done) is int and "failed" not in result:
        renamed["failed"] = max(len(errors) - done, 0)
    return renamed


def _requests(file: str, result: Mapping[str, Any], which: str) -> list[Observation]:
    cap = result.get("max_concurrency")
    seats = cap if type(cap) is int and cap > 0 else len(result["errors"])
    ends: list[int] = []

    def make(row: int, told: tuple[Any, ...]) -> Observation:
        inputs, outputs, ttft, itls, error = told
        sent_ns = heapq.heappop(ends) if len(ends) >= seats else 0
        if error or not inputs or not (outputs or ttft):
            heapq.heappush(ends, sent_ns)  # how long it took is not told
            return failed(row, str(row), inputs, error)
        if not isinstance(itls, list):
            raise ValueError(f"itls must hold lists of seconds, found {itls!r:.60}")
        gaps_ns = [_ns("ttfts", ttft), *(_ns("itls", gap) for gap in itls)]
        instant, token_ns = sent_ns, []
        for gap_ns in gaps_ns:
            instant += gap_ns
            token_ns.append(instant)
        heapq.heappush(ends, instant)
        tokens = count("output_lens", outputs) or len(token_ns)
        return completed(row, str(row), sent_ns, token_ns, inputs, tokens)

    return collected(enumerate(zip(*(result[key] for key in LISTS), strict=True)), make, file, which)


def _ns(what: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LONGEST_S:
        raise ValueError(f"{what} must hold seconds, found {value!r:.60}")
    return round(value * NS_PER_S)
