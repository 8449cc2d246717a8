"""KV cache sizes that vLLM logged in public, against the memory plan: ``docs/memory.md`` has this table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.accuracy_memory import (
    MemoryRow,
    failed_memory_checks,
    memory_rows,
    memory_scores,
    memory_section,
    planned,
    table_row,
)
from benchmarks.memory_logs import CONFIGS, H100, START_LOGS, StartLog

NOWHERE = Path("no-such-folder")


@pytest.mark.parametrize("log", START_LOGS, ids=lambda log: f"{log.name}, {log.version}")
def test_the_plan_leaves_what_vllm_logged(log: StartLog) -> None:
    row = planned(log)
    assert abs(row.error) < log.bound, f"{row.error:+.2%}"


GEMMA_STARTS = (
    ("gemma-2-2b-it", 670_160),
    ("gemma-2-27b-it", 58_672),
    ("gemma-3-4b-it", 468_144),
    ("gemma-3-27b-it", 36_560),
)


@pytest.mark.parametrize(("model", "tokens"), GEMMA_STARTS)
def test_alternating_windows_are_padded_to_groups(model: str, tokens: int) -> None:
    """Figures of vLLM 0.19.0 from llm-d-planner: Gemma 3 27B keeps 70 layers' KV for 62, 13 % of its tokens."""
    settings = {**H100, "model": model, "gpu_memory_utilization": 0.95, "max_model_len": 8192}
    log = StartLog(name=model, version="0.19.0", engine=settings, source="", tokens=tokens, config=CONFIGS[model])
    assert abs(planned(log).error) < 0.02


def test_bounds_are_wider_only_with_a_reason() -> None:
    assert all(log.off for log in START_LOGS if log.bound > 0.03)
    within = [log for log in START_LOGS if abs(planned(log).error) < 0.03]
    assert {log.engine["gpu"] for log in within} >= {"h100-sxm", "a100-80gb-sxm", "a100-40gb-sxm", "l40s", "rtx-4090"}


def test_the_bars_are_met_and_can_be_missed() -> None:
    rows = memory_rows(NOWHERE)
    assert failed_memory_checks(rows) == []
    everything = memory_scores(rows)[0]
    assert everything.within_3 >= 0.9 * everything.rows > 9
    good = next(row for row in rows if row.is_scored and not row.log.off)
    far = StartLog(name="far", version="0.19.0", engine=good.log.engine, source="", tokens=good.log.tokens // 2)
    lines = failed_memory_checks([*rows, MemoryRow(far, good.plan), MemoryRow(far, good.plan)])
    assert len(lines) == 3
    assert lines[0].startswith("memory: far, vLLM 0.19.0: +")
    assert lines[2] == "memory: 10 of 13 starts within 3%, at least 90% of them"


def test_older_versions_are_shown_and_not_scored() -> None:
    rows = memory_rows(NOWHERE)
    assert memory_scores(rows)[0].rows == sum(row.is_scored for row in rows) < len(rows)
    assert f"| all starts | {memory_scores(rows)[0].rows} |" in memory_section(rows, NOWHERE)


def test_the_page_is_this_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "memory.md").read_text(encoding="utf-8")
    missing = [line for row in memory_rows(NOWHERE) if (line := table_row(row)) not in page]
    assert not missing, "\n".join(["docs/memory.md lacks:", *missing])
