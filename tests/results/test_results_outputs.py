"""The files of a run: complete or absent, deterministic, escaped, self-contained."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from results_records import make_record, random_record

from sim.errors import InputError
from sim.results.context import Price, RunContext
from sim.results.report import render_report
from sim.results.results import Results
from sim.results.series import binned
from sim.results.svg import linear_ticks, log_ticks
from sim.results.terminal import print_summary
from sim.results.timeline import trace_events
from sim.results.wording import nice_number

ALL_FILES = [
    *("summary.json", "requests.parquet", "steps.parquet", "scenario.resolved.yaml", "report.html", "trace.json.gz"),
]
CONTEXT = RunContext(
    name="<script>alert(1)</script>",
    slo={"ttft_p95_ms": 30.0},
    price=Price(2.0, "example"),
    scenario_yaml="name: '</pre><b>'\n",
)


def test_writes_all_six_files_and_the_same_bytes_again(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        written = Results(random_record(2), CONTEXT).write(tmp_path / "deep" / folder)
        assert [path.name for path in written] == ALL_FILES
    for name in ALL_FILES:
        assert (tmp_path / "deep/one" / name).read_bytes() == (tmp_path / "deep/two" / name).read_bytes(), name
    assert sorted(each.name for each in (tmp_path / "deep/one").iterdir()) == sorted(ALL_FILES), "nothing left behind"


def test_outputs_settings_choose_files(tmp_path: Path) -> None:
    context = RunContext(report=False, trace=False, requests=False, steps=False)
    written = Results(make_record(), context).write(tmp_path)
    assert [path.name for path in written] == ["summary.json", "scenario.resolved.yaml"]


def test_a_folder_holds_the_files_of_one_run(tmp_path: Path) -> None:
    small = RunContext(report=False, trace=False, requests=False, steps=False)
    (tmp_path / "report.html").write_text("somebody's own, no run was here")
    Results(make_record(), small).write(tmp_path)
    assert (tmp_path / "report.html").exists()
    Results(make_record(), CONTEXT).write(tmp_path, {"seeds.json": "{}\n"})
    (tmp_path / "notes.txt").write_text("kept")
    (tmp_path / "simrun-out.killed.part").mkdir()
    (tmp_path / "simrun-out.killed.part" / "summary.json").write_text("{")
    Results(make_record(), small).write(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["notes.txt", "scenario.resolved.yaml", "summary.json"]


def test_parquet_says_what_the_frames_say(tmp_path: Path) -> None:
    import pandas as pd

    for record in (make_record(), random_record(4)):
        results = Results(record)
        results.write(tmp_path)
        for name, frame in (("requests", results.requests), ("steps", results.steps)):
            read = pd.read_parquet(tmp_path / f"{name}.parquet")
            assert list(read.columns) == list(frame.columns)
            for column in frame:
                same = [(pd.isna(a) and pd.isna(b)) or a == b for a, b in zip(read[column], frame[column], strict=True)]
                assert all(same), column


def test_a_failed_write_leaves_the_old_files_and_no_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Results(make_record(), CONTEXT).write(tmp_path)
    before = (tmp_path / "summary.json").read_bytes()

    def fail(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("sim.results.report.render_report", fail)
    with pytest.raises(KeyboardInterrupt):
        Results(random_record(1), CONTEXT).write(tmp_path)
    assert (tmp_path / "summary.json").read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(ALL_FILES)


def test_out_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="--out"):
        Results(make_record()).write(tmp_path / "taken")


class Page(HTMLParser):
    """Tags in balance, and what they would load."""

    VOID = {"meta", "br", "link", "img", "input"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not {name for name, _ in attrs} & {"src", "href", "xlink:href", "onclick", "onload"}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_report_is_self_contained_balanced_and_escaped() -> None:
    for record in (make_record([None, {"itl_p99_ms": 1.0}]), random_record(6)):
        html = render_report(record, Results(record, CONTEXT).summary, CONTEXT)
        page = Page()
        page.feed(html)
        assert not page.open
        assert "script" not in page.tags
        assert page.tags.count("svg") == 7
        assert not re.search(r"https?://|url\(|@import", html)
        assert "&lt;script&gt;alert(1)" in html
        assert not re.search(r"\b(nan|inf)\b", html.lower().split("</style>")[1])
    assert "&lt;b&gt;globex &amp; co&lt;/b&gt;" in render_report(
        make_record(), Results(make_record(), CONTEXT).summary, CONTEXT
    )


def test_report_of_a_run_in_which_nothing_completed() -> None:
    record = make_record()
    record.requests = {name: column[2:3] for name, column in record.requests.items()}
    record.steps = {name: column[:0] for name, column in record.steps.items()}
    record.itl_ns = record.itl_weight = np.empty(0, dtype=np.int64)
    html = render_report(record, Results(record, CONTEXT).summary, CONTEXT)
    assert "nothing completed" in html
    assert "No samples" in html
    assert "1 rejected" in html
    events, _ = trace_events(record)
    assert [event["name"] for event in events if event.get("cat") == "request"] == ["request c"]


def test_report_stays_small_for_a_long_run() -> None:
    record = random_record(8, num_requests=3000)
    assert len(render_report(record, Results(record).summary, RunContext())) < 150_000


def load_trace(path: Path) -> dict[str, object]:
    return json.loads(gzip.decompress(path.read_bytes()))


def test_trace_is_valid_and_nested(tmp_path: Path) -> None:
    record = random_record(9)
    Results(record).write(tmp_path)
    document = load_trace(tmp_path / "trace.json.gz")
    events = document["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "C"}
    assert sum(event.get("cat") == "step" for event in events) == len(record.steps["replica"])
    lanes: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in events:
        if event["ph"] == "X":
            assert event["dur"] >= 0
        if event.get("cat") == "request":
            lanes.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    assert sum(len(spans) for spans in lanes.values()) == len(record.requests["row"])
    for spans in lanes.values():
        spans.sort()
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans)), "requests of a lane do not overlap"
    phases = sum(event["dur"] for event in events if event.get("cat") == "phase")
    requests = sum(event["dur"] for event in events if event.get("cat") == "request")
    assert phases == pytest.approx(requests)


def test_trace_of_a_long_run_is_thinned_and_says_so() -> None:
    record = random_record(10, num_requests=100)
    events, note = trace_events(record, max_steps=50, max_requests=5)
    assert sum(event.get("cat") == "step" for event in events) == 50
    assert sum(event.get("cat") == "request" for event in events) <= 5
    assert note is not None
    assert "the first 50 of 1,000" in note
    assert trace_events(record)[1] is None


def test_bins_keep_the_integral() -> None:
    record = make_record()
    for bins in (1, 7, 140):
        series = binned(record, bins)
        assert (series.running.mean() * 140) == pytest.approx(1 * 20 + 2 * 25 + 1 * 15 + 1 * 40)
        assert (series.kv_usage.mean() * 140 * 200) == pytest.approx(7 * 20 + 10 * 25 + 8 * 15 + 5 * 40)
        assert (series.output_tokens_per_s.mean() * 0.14) == pytest.approx(1 + 2 + 3 + 3)
        assert series.kv_usage_max.max() == pytest.approx(0.1)
    assert binned(record, 140).prefill_tokens[:20] == pytest.approx(100)


@pytest.mark.parametrize("terminal", [False, True])
def test_terminal_summary_fits_80_columns(terminal: bool) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    record = make_record([{"itl_p99_ms": 5.0}, {"ttft_p95_ms": 1.0}])
    record.notes.append("x" * 200 + "\x1b[31m")
    record.latency = {"kind": "roofline"}
    context = RunContext("n" * 50 + "\x1b[2J", slo={"e2el_p99_ms": 0.001}, price=Price(2.0, "an example list price"))
    screen = Screen()
    paths = [Path("/a/rather/long/folder/name/for/the/outputs/of/a/run/that/goes/on") / name for name in ALL_FILES]
    print_summary(Results(record, context).summary, paths, screen)
    text = screen.getvalue()
    bare = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert max(len(line) for line in bare.splitlines()) <= 80
    assert "\x1b" not in bare
    assert terminal or bare == text
    for expected in ("ESTIMATE, not measured", "TTFT", "MISSED", "ITL p99", "report.html", "3 of 4"):
        assert expected in bare


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.001234, "0.00123"), (1.5, "1.5"), (12.34, "12.3"), (99.96, "100"), (1234.5, "1,234"), (-5, "-5")],
)
def test_numbers_are_readable(value: float, text: str) -> None:
    assert nice_number(value) == text


def test_ticks_are_round_and_inside() -> None:
    assert linear_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert linear_ticks(3, 3) == [3]
    assert log_ticks(1, 100) == [1, 2, 5, 10, 20, 50, 100]
    assert log_ticks(5, 50_000) == [10, 100, 1000, 10000]
