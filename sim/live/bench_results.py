"""Results of ``vllm bench serve``: what a file of them holds, and the requests of one that has them.

``--save-result`` writes one JSON object, ``--append-result`` one after the other into the same file. A list per kind of
figure is there with ``--save-detailed`` alone; its entries are requests in the order in which they were sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sim.errors import InputError, Problem
from sim.live.observation_file import LARGEST_COUNT, NS_PER_S, Observation
from sim.live.other_tools import from_the_first

WITHOUT_STARTS = ("input_lens", "output_lens", "ttfts", "itls", "errors")
BENCH_LISTS = ("input_lens", "output_lens", "ttfts", "itls", "start_times", "errors")
"""Keys that ``--save-detailed`` adds, a value per request (vLLM's ``benchmarks/serve.py``)."""
STARTS_SINCE = "0.15"
"""The version of vLLM whose benchmark writes ``start_times`` first (vllm-project/vllm#32667, January 2026)."""

LATEST_START_S, LONGEST_GAP_S = 4e9, 1e7
"""Beyond these a number is no instant (seconds since 1970 or since the machine started) or no time between tokens."""
MOST_PROBLEMS = 20


def checked_results(file: str, documents: list[Any]) -> list[dict[str, Any]]:
    """The results in a file, in order: one, or several where they were appended.

    Raises InputError where there is none, or something else.
    """
    if not documents:
        raise InputError(
            Problem(
                "neither a record of `simrun observe` nor a result of `vllm bench serve --save-result` (with "
                "--append-result several, one after the other), nor JSON of SGLang's bench_serving, guidellm, "
                "inference-perf or AIPerf",
                file,
            )
        )
    if not all(isinstance(each, dict) for each in documents):
        raise InputError(
            Problem(
                "expected the one JSON object that `vllm bench serve` writes, or what SGLang's bench_serving, "
                "guidellm, inference-perf or AIPerf write",
                file,
            )
        )
    return documents


def documents_of(text: str) -> list[Any]:
    """JSON documents that follow each other; none where anything else is between them."""
    decoder, found, position = json.JSONDecoder(), [], 0
    while (position := _next(text, position)) < len(text):
        try:
            document, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            return []
        found.append(document)
    return found


def _next(text: str, position: int) -> int:
    """The first place from ``position`` on that is no white space of JSON."""
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def lists_of(result: Mapping[str, Any]) -> list[str]:
    """The lists of ``BENCH_LISTS`` that a result has."""
    return [key for key in BENCH_LISTS if isinstance(result.get(key), list)]


def has_no_starts(result: Mapping[str, Any]) -> bool:
    """Whether it has requests but not when they were sent, as before vLLM 0.15."""
    return lists_of(result) == [key for key in BENCH_LISTS if key in WITHOUT_STARTS]


def missing_lists(result: Mapping[str, Any], which: str) -> str:
    """Why a result without some of its lists cannot be compared, and what helps; ``which`` names it in its file."""
    there = lists_of(result)
    if has_no_starts(result):
        return (
            f"{which}no list start_times: `vllm bench serve` writes it since vLLM {STARTS_SINCE}, and without it "
            "nothing says when requests were sent. Measure with the benchmark of a later vLLM (the server may stay as "
            "it is) or with `simrun observe`; `simrun fit` takes this file, with the arrivals of the scenario"
        )
    missing = ", ".join(key for key in BENCH_LISTS if key not in there)
    if not there:
        return (
            f"{which}no list {missing}: it has statistics alone. Run `vllm bench serve` with both --save-result (or "
            "--append-result) and --save-detailed; `simrun fit` takes statistics"
        )
    return (
        f"{which}no list {missing}, but {', '.join(there)}: what `vllm bench serve --save-detailed` writes of "
        "generated text has all of them, so this is of another kind (pooling), or was changed after it was written"
    )


def read_requests(file: str, result: Mapping[str, Any], which: str) -> tuple[list[Observation], list[str]]:
    """(requests in the order of sending, notes) of a result that has them; without ``start_times`` all are sent at 0.

    Raises InputError with every value that cannot be.
    """
    starts = {} if isinstance(result.get("start_times"), list) else {"start_times": 0.0}
    keys = [key for key in BENCH_LISTS if key not in starts]
    lengths = {key: len(result[key]) for key in keys}
    if len(set(lengths.values())) > 1:
        raise InputError(Problem(f"{which}its lists must be of one length, found {lengths}", file))
    rows, problems = [], []
    for row in range(lengths["ttfts"]):
        try:
            rows.append(_request(row, {key: result[key][row] for key in keys} | starts))
        except ValueError as error:
            problems.append(Problem(f"{which}request {row}: {error}", file))
    if problems:
        raise InputError(problems[:MOST_PROBLEMS])
    from_the_first(rows)
    return rows, _notes(result, rows)


def _request(row: int, values: Mapping[str, Any]) -> Observation:
    if values["errors"]:
        return _failed(row, values)
    inputs, outputs = _length("input_lens", values["input_lens"]), _length("output_lens", values["output_lens"])
    gaps_s = values["itls"]
    if not isinstance(gaps_s, list):
        raise ValueError(f"itls must hold a list of seconds, found {gaps_s!r:.60}")
    if (outputs < 1 and not gaps_s and not values["ttfts"]) or not inputs:
        return _failed(row, values)
    sent_ns = _ns("start_times", values["start_times"], LATEST_START_S)
    gaps = [_ns("ttfts", values["ttfts"]), *(_ns("itls", gap) for gap in gaps_s)]
    # Where the server counted nothing and the text is empty (special tokens alone), each piece was a token.
    tokens = outputs or len(gaps)
    seen = Observation(row, str(row), sent_ns, inputs, max_tokens=tokens, sent_ns=sent_ns)
    seen.token_ns = (sent_ns + np.cumsum(gaps, dtype=np.int64)).tolist()
    seen.end_ns = seen.token_ns[-1]
    seen.output_tokens, seen.status = tokens, "completed"
    seen.check()
    return seen


def _failed(row: int, values: Mapping[str, Any]) -> Observation:
    """A request that did not complete; what its other values are is not looked at."""
    inputs = values["input_lens"]
    seen = Observation(row, str(row), 0, inputs if _is_count(inputs) else 0, max_tokens=1)
    # The benchmark drops the reason where a server's answer has none.
    told = "no text came back, and no reason is given" if inputs else "its prompt has no tokens"
    seen.reason = str(values["errors"] or "").strip().rpartition("\n")[2] or told
    return seen


def _is_count(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int) and 0 <= value < LARGEST_COUNT


def _length(key: str, value: Any) -> int:
    if not _is_count(value):
        raise ValueError(f"{key} must hold whole numbers, found {value!r:.60}")
    return int(value)


def _ns(key: str, value: Any, below_s: float = LONGEST_GAP_S) -> int:
    """Nanoseconds of ``value`` in seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < below_s:
        raise ValueError(f"{key} must hold seconds, found {value!r:.60}")
    return round(value * NS_PER_S)


def _notes(result: Mapping[str, Any], rows: Sequence[Observation]) -> list[str]:
    notes = ["vllm bench serve records no shared prompts and no priorities: all prompts are taken to differ"]
    uncounted = sum(each.status == "completed" and not result["output_lens"][row] for row, each in enumerate(rows))
    if uncounted:
        notes.append(
            f"{uncounted:,} of {len(rows):,} requests completed with output_lens 0, because neither the server nor the "
            "text says how many tokens came: each piece of their streams is taken as one token"
        )
    return notes
