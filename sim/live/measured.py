"""A measured run from its file: a record of ``simrun observe``, or what ``vllm bench serve --save-detailed`` writes."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sim.errors import InputError, Problem
from sim.live.observation_file import KIND, LARGEST_COUNT, NS_PER_S, Observation, read_record
from sim.results.metrics import METRICS, STATISTICS, Samples

BENCH_LISTS = ("input_lens", "output_lens", "ttfts", "itls", "start_times", "errors")
"""Keys that ``--save-detailed`` adds, a value per request (vLLM's ``benchmarks/serve.py``)."""

LATEST_START_S, LONGEST_GAP_S = 4e9, 1e7
"""Beyond these a number is no instant (seconds since 1970 or since the machine started) or no time between tokens."""


@dataclass(slots=True)
class Measured:
    """A measured run."""

    source: str
    """What kind of file it came from."""
    observations: list[Observation]
    """Every request of the file, whatever became of it."""
    about: dict[str, Any] = field(default_factory=dict)
    """What the file says of the run."""
    notes: list[str] = field(default_factory=list)

    @property
    def completed(self) -> list[Observation]:
        """Requests that completed, in the order of sending."""
        done = [each for each in self.observations if each.status == "completed"]
        return sorted(done, key=lambda each: (each.sent_ns or 0, each.row))


def read_text(name: str) -> str:
    """What the file ``name`` holds. Raises InputError."""
    try:
        return Path(name).read_bytes().decode("utf-8")
    except IsADirectoryError:
        raise InputError(Problem("a directory; give the file in it", name)) from None
    except OSError as error:
        raise InputError(Problem(f"cannot be read: {os.strerror(error.errno or 0)}", name)) from None
    except UnicodeDecodeError:
        raise InputError(Problem("not a text file; expected a record of `simrun observe`", name)) from None


def read_measured(name: str) -> Measured:
    """The run in the file ``name``. Raises InputError for a file that is neither kind, with the lines at fault."""
    path, text = Path(name), read_text(name)
    first = text.partition("\n")[0]
    if is_record(first):
        # Not splitlines(): text in JSON may hold other line ends than \n.
        about, observations, notes = read_record(path, io.StringIO(text, newline="\n"))
        return Measured("simrun observe", observations, about, notes)
    return _read_bench(path, text)


def is_record(first_line: str) -> bool:
    """Whether a file that begins with this line is a record of ``simrun observe``."""
    try:
        line = json.loads(first_line)
    except (ValueError, RecursionError):
        return False
    return isinstance(line, dict) and line.get("record") == KIND


def _read_bench(path: Path, text: str) -> Measured:
    file = str(path)
    try:
        result = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(
            Problem(
                "neither a record of `simrun observe` nor one result of `vllm bench serve --save-result "
                "--save-detailed` (with --append-result, keep the one to compare in its own file)",
                file,
            )
        ) from None
    if not isinstance(result, dict):
        raise InputError(Problem("expected the one JSON object that `vllm bench serve` writes", file))
    missing = [key for key in BENCH_LISTS if not isinstance(result.get(key), list)]
    if missing:
        raise InputError(
            Problem(
                f"no list {', '.join(missing)}: run `vllm bench serve` with both --save-result and --save-detailed",
                file,
            )
        )
    lengths = {key: len(result[key]) for key in BENCH_LISTS}
    if len(set(lengths.values())) > 1:
        raise InputError(Problem(f"its lists must be of one length, found {lengths}", file))
    rows, problems = [], []
    for row in range(lengths["ttfts"]):
        try:
            rows.append(_bench_request(row, {key: result[key][row] for key in BENCH_LISTS}))
        except ValueError as error:
            problems.append(Problem(f"request {row}: {error}", file))
    if problems:
        raise InputError(problems[:20])
    first = min((each.sent_ns for each in rows if each.sent_ns is not None), default=0)
    for each in rows:
        _shift(each, -first)
    notes = ["vllm bench serve records no shared prompts and no priorities: all prompts are taken to differ"]
    about = {key: result[key] for key in ("model_id", "backend", "date", "request_rate") if key in result}
    return Measured("vllm bench serve", rows, about, notes)


def _bench_request(row: int, values: dict[str, Any]) -> Observation:
    inputs, outputs = _length("input_lens", values["input_lens"]), _length("output_lens", values["output_lens"])
    sent_ns = _ns("start_times", values["start_times"], LATEST_START_S)
    seen = Observation(row, str(row), sent_ns, inputs, max_tokens=max(1, outputs), sent_ns=sent_ns)
    if values["errors"] or outputs < 1:
        seen.reason = str(values["errors"]).strip().rpartition("\n")[2] or "no output"
        return seen
    if not isinstance(values["itls"], list):
        raise ValueError(f"itls must hold a list of seconds, found {values['itls']!r:.60}")
    gaps = [_ns("ttfts", values["ttfts"]), *(_ns("itls", gap) for gap in values["itls"])]
    seen.token_ns = (sent_ns + np.cumsum(gaps, dtype=np.int64)).tolist()
    seen.end_ns = seen.token_ns[-1]
    seen.output_tokens, seen.status = outputs, "completed"
    seen.check()
    return seen


def _length(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LARGEST_COUNT:
        raise ValueError(f"{key} must hold whole numbers, found {value!r:.60}")
    return value


def _ns(key: str, value: Any, below_s: float = LONGEST_GAP_S) -> int:
    """Nanoseconds of ``value`` in seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < below_s:
        raise ValueError(f"{key} must hold seconds, found {value!r:.60}")
    return round(value * NS_PER_S)


def _shift(seen: Observation, by_ns: int) -> None:
    seen.due_ns += by_ns
    if seen.sent_ns is not None:
        seen.sent_ns += by_ns
    if seen.end_ns is not None:
        seen.end_ns += by_ns
    seen.token_ns = [each + by_ns for each in seen.token_ns]


def figures(measured: Measured) -> dict[str, Any]:
    """The keys of ``vllm bench serve`` for a measured run, each defined as the summary of a simulation defines it.

    Over completed requests: TTFT from sending to the first text, E2E to the last, TPOT = (E2E - TTFT) /
    (output_tokens - 1), ITL = every gap between two pieces of text, duration from the first sending to the last text.
    """
    done = measured.completed
    sent = np.array([each.sent_ns for each in done], dtype=np.int64)
    first = np.array([each.token_ns[0] for each in done], dtype=np.int64)
    last = np.array([each.token_ns[-1] for each in done], dtype=np.int64)
    outputs = np.array([each.output_tokens for each in done], dtype=np.int64)
    several = outputs > 1
    tpot = (last - first)[several] / (outputs[several] - 1)
    gaps = [np.diff(np.array(each.token_ns, dtype=np.int64)) for each in done]
    itl = np.concatenate(gaps) if gaps else np.empty(0, dtype=np.int64)
    duration_s = int(last.max() - sent.min()) / NS_PER_S if done else 0.0
    tokens_in, tokens_out = sum(each.input_tokens for each in done), int(outputs.sum())
    found: dict[str, Any] = {
        "duration": duration_s,
        "completed": len(done),
        "failed": len(measured.observations) - len(done),
        "total_input_tokens": tokens_in,
        "total_output_tokens": tokens_out,
        "request_throughput": _rate(len(done), duration_s),
        "output_throughput": _rate(tokens_out, duration_s),
        "total_token_throughput": _rate(tokens_in + tokens_out, duration_s),
    }
    samples = {"ttft": first - sent, "tpot": tpot, "itl": itl, "e2el": last - sent}
    for metric in METRICS:
        statistics = Samples(samples[metric]).statistics()
        found.update({f"{name}_{metric}_ms": statistics[name] for name in STATISTICS})
    return found


def _rate(count: int, duration_s: float) -> float | None:
    return count / duration_s if duration_s else None


def reasons(observations: list[Observation]) -> Counter[str]:
    """How many requests did not complete, by reason."""
    return Counter(each.reason or "no reason given" for each in observations if each.status != "completed")


def bundled_share(measured: Measured) -> float:
    """Share of output tokens that came together with the one before: in one event, or in events read at once."""
    done = measured.completed
    tokens = sum(each.output_tokens for each in done)
    instants = sum(len(set(each.token_ns)) for each in done)
    return max(0, tokens - instants) / tokens if tokens else 0.0
