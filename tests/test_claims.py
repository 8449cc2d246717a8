"""The claims page: its verdicts stand on what the simulator gives, and it is not out of date."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import claims, claims_batching, claims_compute, claims_memory, claims_parallel
from benchmarks.claims_base import Claim, ClaimBroken, backlog, run

PAGE = (Path(__file__).parents[1] / "docs" / "claims.md").read_text(encoding="utf-8")
SLOW = {"continuous-batching", "two-to-twenty-times", "prefill-share", "seventy-on-sixteen"}
"""Claims of many or long runs: below in small, in full in ``python -m benchmarks.claims --check``."""
QUICK = {key: make for key, make in claims.all_claims().items() if key not in SLOW}


def without_figures(text: str) -> str:
    """Times may move by some per cent without the page being wrong."""
    return re.sub(r"\d[\d.,]*", "#", text)


@pytest.mark.parametrize("key", QUICK)
def test_a_verdict_holds_and_the_page_says_so(key: str) -> None:
    claim = QUICK[key]()
    claim.check()
    assert claim.key == key
    assert without_figures(claims.section(claim)) in without_figures(PAGE)


def test_every_claim_is_on_the_page_once() -> None:
    anchors = re.findall(r'<a id="([^"]+)">', PAGE)
    links = re.findall(r"\]\(#([^)]+)\)", PAGE)
    assert anchors == links == list(claims.all_claims())


# --- in small, what the slow ones are made of ---------------------------------------------------


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("equal", 0.99, 1.01),
        ("10/10/15/20", 1.38, 1.46),
        ("uniform 1-100", 1.75, 2.0),
        ("exponential, mean 200", 3.5, 5.0),
    ],
)
def test_the_gain_of_continuous_batching_in_steps(name: str, low: float, high: float) -> None:
    pair = claims_batching.static_against_continuous(claims_batching.SPREADS[name], 64, rounds=20)
    assert low < pair.gain < high


def test_the_gain_in_time_is_less_than_in_steps() -> None:
    lengths = claims_batching.SPREADS["exponential, mean 200"]
    steps = claims_batching.static_against_continuous(lengths, 64, rounds=8)
    times = claims_batching.static_against_continuous(lengths, 64, rounds=8, latency=None, input_tokens=128)
    assert 1.5 < times.gain < steps.gain


def test_batching_and_paging_together_pass_what_either_gives() -> None:
    lengths = {**claims_batching.SPREADS["exponential, mean 200"], "max": 1800}
    workload = backlog(512, 64, lengths)
    engine = {"gpu": "a100-40gb-sxm", "max_model_len": 4096, "async_scheduling": False}
    both, batching, paging, neither = (
        run({**engine, **settings}, workload).summary["duration"]
        for settings in ({}, {"kv": "contiguous"}, {"batching": "static"}, {"batching": "static", "kv": "contiguous"})
    )
    assert neither / both > 6
    assert neither / both > 1.4 * max(neither / batching, neither / paging)


def test_ten_times_from_exponential_lengths_needs_a_batch_of_twelve_thousand() -> None:
    assert claims_batching.exponential_batch_for(10) == 12_367
    assert claims_batching.harmonic(12_366) < 10 <= claims_batching.harmonic(12_367)


@pytest.mark.parametrize("stages", [2, 4])
def test_one_flush_of_a_pipeline_is_the_formula(stages: int) -> None:
    for batches in (1, 3, 20):
        assert claims_parallel.flush(batches, stages) == pytest.approx(batches / (batches + stages - 1), rel=1e-6)


# --- formulas -----------------------------------------------------------------------------------


def test_waste_of_blocks_and_of_reservations() -> None:
    assert claims_memory.reserved_waste(200) == pytest.approx(0.902, abs=0.001)
    assert claims_memory.paged_waste(42) == 0.125
    assert max(claims_memory.paged_waste(length) for length in range(360, 2049)) < 0.04
    assert claims_memory.average_paged_waste(180) < 0.04 < claims_memory.average_paged_waste(150)


def test_tokens_per_verification_are_a_geometric_sum() -> None:
    assert claims_compute.speculative_tokens(1, 4) == 5
    assert claims_compute.speculative_tokens(0, 4) == 1
    assert claims_compute.speculative_tokens(0.5, 2) == pytest.approx(1 + 0.5 + 0.25)


def test_the_reference_design_by_arithmetic() -> None:
    design = claims_compute.ReferenceDesign()
    assert design.usd_per_million == pytest.approx(0.556, abs=0.001)
    assert design.pair_flops == pytest.approx(880e12)
    assert design.weight_read_s == pytest.approx(0.027, abs=0.0001)
    assert (round(design.gpus), round(2 * design.gpus)) == (165, 329)
    assert design.supply < 2 * design.tokens_per_s == pytest.approx(116_667, abs=1)


# --- the command --------------------------------------------------------------------------------


def made_up(**conditions: bool) -> Claim:
    return Claim("made-up", "E1", "Made up", "said", "computed", "simulated", "Holds: mostly. Or not.", conditions)


def test_a_broken_verdict_is_named_and_no_page_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.md"
    monkeypatch.setattr(claims, "CHAPTERS", {"One": {"made-up": lambda: made_up(good=True, bad=False)}})
    assert claims.main(["--out", str(out)]) == 1
    assert "made-up: the verdict must be written anew, no longer true: bad" in capsys.readouterr().err
    assert not out.exists()
    monkeypatch.setattr(claims, "CHAPTERS", {"One": {"made-up": lambda: made_up(good=True)}})
    assert claims.main(["--check", "--out", str(out)]) == 0
    assert not out.exists()
    assert claims.main(["--out", str(out)]) == 0
    assert "| [Made up](#made-up) | Holds |" in out.read_text(encoding="utf-8")


def test_a_place_that_cannot_hold_the_page_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(claims, "make_all", lambda only: pytest.fail("computed"))
    for out in (tmp_path, tmp_path / "none" / "page.md"):
        with pytest.raises(SystemExit) as stop:
            claims.main(["--out", str(out)])
        assert stop.value.code == 2
        assert f"--out {out}: a folder, or in one that is not there" in capsys.readouterr().err


def test_an_unknown_claim_and_an_odd_verdict_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        claims.main(["--only", "nothing-like-it"])
    assert "no claim nothing-like-it; there are continuous-batching" in capsys.readouterr().err
    with pytest.raises(ValueError, match="must begin with one of"):
        Claim("odd", "E1", "Odd", "", "", "", "Perhaps", {}).check()
    with pytest.raises(ClaimBroken, match="odd"):
        Claim("odd", "E1", "Odd", "", "", "", "Holds", {"never": False}).check()
