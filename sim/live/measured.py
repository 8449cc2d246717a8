"""A measured run from its file: a record of ``simrun observe``, what ``vllm bench serve --save-detailed`` writes, or
what another load generator does (``result_kinds.py``)."""

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
from sim.live.bench_results import (
    BENCH_LISTS,
    checked_results,
    documents_of,
    lists_of,
    missing_lists,
    read_requests,
)
from sim.live.observation_file import KIND, NS_PER_S, Observation, read_record
from sim.live.other_tools import ToolRun
from sim.live.result_kinds import tool_runs
from sim.results.metrics import METRICS, STATISTICS, Samples


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
    has_gaps: bool = True
    """Whether it says when each token came, beside the first and the last."""

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
    """The run in the file ``name``. Raises InputError for a file that is of no known kind, with the lines at fault."""
    path, text = Path(name), read_text(name)
    first = text.partition("\n")[0]
    if is_record(first):
        # Not splitlines(): text in JSON may hold other line ends than \n.
        about, observations, notes = read_record(path, io.StringIO(text, newline="\n"))
        return Measured("simrun observe", observations, about, notes)
    documents = documents_of(text)
    runs = tool_runs(name, documents)
    return _read_bench(name, documents) if runs is None else _last_of(name, runs)


def _last_of(name: str, runs: list[ToolRun]) -> Measured:
    """The run that was measured last, of another load generator than vLLM's."""
    run = runs[-1]
    if run.observations is None:
        raise InputError(Problem(f"{run.which}{run.why_no_requests}", name))
    measured = measured_of_tool(run)
    if len(runs) > 1:
        measured.notes.append(f"{name} holds {len(runs)} runs of {run.tool}: the last one is compared")
    return measured


def measured_of_tool(run: ToolRun) -> Measured:
    """A run that has requests."""
    return Measured(run.tool, run.observations or [], notes=list(run.notes), has_gaps=run.has_gaps)


def is_record(first_line: str) -> bool:
    """Whether a file that begins with this line is a record of ``simrun observe``."""
    try:
        line = json.loads(first_line)
    except (ValueError, RecursionError):
        return False
    return isinstance(line, dict) and line.get("record") == KIND


def named_results(name: str, documents: list[Any]) -> list[tuple[str, dict[str, Any]]]:
    """(what an error message calls it, the result) of each result of ``vllm bench serve`` in the file ``name``.

    Raises InputError.
    """
    results = checked_results(name, documents)
    if len(results) == 1:
        return [("", results[0])]
    return [(f"result {number} of {len(results)} (--append-result): ", each) for number, each in enumerate(results, 1)]


def measured_of(name: str, which: str, result: dict[str, Any]) -> Measured:
    """One result that has requests. Raises InputError."""
    rows, notes = read_requests(name, result, which)
    about: dict[str, Any] = {
        key: result[key] for key in ("model_id", "backend", "date", "request_rate") if key in result
    }
    return Measured("vllm bench serve", rows, about, notes)


def _read_bench(name: str, documents: list[Any]) -> Measured:
    """The last result of the file: the one that was measured last."""
    results = named_results(name, documents)
    which, result = results[-1]
    if len(lists_of(result)) < len(BENCH_LISTS):
        raise InputError(Problem(missing_lists(result, which), name))
    measured = measured_of(name, which, result)
    if len(results) > 1:
        measured.notes.append(
            f"{name} holds {len(results)} results, one appended to the other: the last one is compared. To compare "
            "another one, put its line into a file of its own"
        )
    return measured


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
        is_known = metric != "itl" or measured.has_gaps
        found.update({f"{name}_{metric}_ms": statistics[name] if is_known else None for name in STATISTICS})
    return found


def _rate(count: int, duration_s: float) -> float | None:
    return count / duration_s if duration_s else None


def reasons(observations: list[Observation]) -> Counter[str]:
    """How many requests did not complete, by reason."""
    return Counter(each.reason or "no reason given" for each in observations if each.status != "completed")


def bundled_share(measured: Measured) -> float:
    """Share of output tokens that came together with the one before: in one event, or in events read at once; 0 where
    it is not known when each came."""
    if not measured.has_gaps:
        return 0.0
    done = measured.completed
    tokens = sum(each.output_tokens for each in done)
    instants = sum(len(set(each.token_ns)) for each in done)
    return max(0, tokens - instants) / tokens if tokens else 0.0
