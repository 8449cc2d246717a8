"""The error of what a run charged: weights, kinds, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest

import sim
from sim.results.charged_error import LARGEST_ERROR, error_section, unmeasured_parts
from sim.results.wording import error_words


def part(kind: str, error: float, share: float = 1.0) -> dict[str, Any]:
    return {"share": share, "kind": kind, "error": error, "what": f"{kind} of it"}


EVIDENCE = {
    "matrices": [part("measured", 0.02, 0.75), part("interpolated", 0.04, 0.25)],
    "decode_attention": [part("other_format", 0.2)],
    "host": [part("estimate", 0.25)],
}


def test_errors_are_weighted_by_the_seconds_of_the_run() -> None:
    """By hand: 6 s at 2.5 %, 3 s at 20 %, 1 s of the host at 25 %."""
    found = error_section({"evidence": EVIDENCE}, {"matrices": 6.0, "decode_attention": 3.0}, 1.0, {})
    assert found["value"] == pytest.approx((6 * 0.025 + 3 * 0.2 + 1 * 0.25) / 10)
    assert found["accelerator"] == pytest.approx((6 * 0.025 + 3 * 0.2) / 9)
    assert found["shares"] == pytest.approx(
        {"measured": 0.45, "interpolated": 0.15, "other_format": 0.3, "estimate": 0.1}
    )


def test_a_host_that_never_shows_counts_for_nothing() -> None:
    found = error_section({"evidence": EVIDENCE}, {"matrices": 6.0}, 0.0, {})
    assert "host" not in found["terms"]
    assert found["value"] == found["accelerator"]


def test_a_term_of_which_nothing_is_known_counts_as_an_estimate() -> None:
    found = error_section({"evidence": EVIDENCE}, {"matrices": 1.0, "swap": 1.0}, 0.0, {})
    assert found["terms"]["swap"]["error"] == 0.25
    assert found["terms"]["swap"]["parts"][0]["kind"] == "estimate"


def test_waiting_for_the_slowest_rank_is_as_wrong_as_what_is_waited_for() -> None:
    found = error_section({"evidence": EVIDENCE}, {"matrices": 3.0, "decode_attention": 1.0, "waiting": 96.0}, 0.0, {})
    assert found["value"] == pytest.approx((3 * 0.025 + 0.2) / 4)


def test_an_absurd_error_leaves_step_times_positive() -> None:
    assert error_section({"evidence": {"all": [part("measured", 3.0)]}}, {"x": 1.0}, 0.0, {})["value"] == LARGEST_ERROR


def test_parts_that_were_not_measured_come_with_the_largest_contribution_first() -> None:
    seconds = {"matrices": 6.0, "decode_attention": 3.0}
    found = unmeasured_parts(error_section({"evidence": EVIDENCE}, seconds, 1.0, {}))
    assert [(name, kind) for name, kind, _, _ in found] == [("decode_attention", "other_format"), ("host", "estimate")]
    assert found[0][2:] == pytest.approx((0.3, 0.2))


def run(**engine: Any) -> dict[str, Any]:
    scenario = {
        "name": "error",
        "workload": {
            "requests": 40,
            "arrival": {"process": "poisson", "rate": 8.0},
            "input_tokens": {"dist": "fixed", "value": 300},
            "output_tokens": {"dist": "fixed", "value": 40},
        },
        "engine": {"model": "llama-3.1-8b", "gpu": "h100-sxm", "max_model_len": 4096, **engine},
    }
    return sim.simulate(scenario).summary


def test_seconds_of_a_run_sum_to_what_it_charged() -> None:
    summary = run(async_scheduling=False)
    terms = summary["error"]["terms"]
    on_gpus = sum(each["busy_s"] for each in summary["replicas"])
    assert sum(term["seconds"] for name, term in terms.items() if name != "host") == pytest.approx(on_gpus)
    assert terms["host"]["seconds"] > 0.05 * on_gpus  # without scheduling ahead all of it shows
    assert terms["host"]["seconds"] > 20 * run()["error"]["terms"]["host"]["seconds"]
    assert sum(term["share"] for term in terms.values()) == pytest.approx(1.0)
    assert sum(summary["error"]["shares"].values()) == pytest.approx(1.0)


def test_formats_gpus_and_sizes_that_were_not_measured_name_their_part() -> None:
    plain, int8, small = run(), run(dtype="int8"), run(gpu="a100-40gb-sxm")
    assert plain["error"]["shares"]["measured"] + plain["error"]["shares"]["interpolated"] > 0.7
    assert int8["error"]["shares"]["other_format"] > 0.5
    assert small["error"]["shares"]["other_gpu"] > 0.5
    assert min(int8["error"]["value"], small["error"]["value"]) > plain["error"]["value"]


def test_a_gpu_without_a_profile_is_an_estimate_and_says_so() -> None:
    summary = run(gpu="rtx-4090", dtype="fp8", max_model_len=4096)
    words = dict(error_words(summary["error"], summary["run"]["latency"]))
    assert words["error"] == "about 25% of the time that this run charged: all of it estimated"
    assert "there is no measured profile of rtx-4090" in words["whole runs"]


def test_constant_step_times_have_no_error_to_tell() -> None:
    assert error_words({}, {"kind": "constant"}) == []
