"""The profile file: written, read back, and refused with the place of what is wrong."""

from __future__ import annotations

import errno
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from profiles import hand_made

from sim.errors import InputError
from sim.latency.gpus import load_gpu
from sim.latency.profile.file import (
    Gate,
    Profile,
    load_profile,
    parse_profile,
    profile_bytes,
    profile_hash,
    save_profile,
)
from sim.latency.profile.library import BUILTIN, builtin_names, check_profile, find_profile


def document() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(profile_bytes(hand_made()))
    return content


def refusal(content: object) -> str:
    with pytest.raises(InputError) as error:
        parse_profile(json.dumps(content).encode(), "mine.json")
    return str(error.value)


@pytest.mark.parametrize("name", ["p.json", "p.json.gz"])
def test_written_and_read_back(tmp_path: Path, name: str) -> None:
    profile = hand_made()
    save_profile(profile, tmp_path / name)
    raw = (tmp_path / name).read_bytes()
    assert raw.startswith(b"\x1f\x8b") == name.endswith(".gz")
    read = load_profile(tmp_path / name)
    assert profile_bytes(read) == profile_bytes(profile)
    assert profile_hash(read) == profile_hash(profile)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_profile_that_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        save_profile(hand_made(), tmp_path / "p.json")
    assert list(tmp_path.iterdir()) == []


def test_the_hash_depends_on_what_was_measured() -> None:
    assert profile_hash(hand_made(2.0)) != profile_hash(hand_made(2.5))


def test_a_curve_is_one_line_of_the_file() -> None:
    lines = profile_bytes(hand_made()).decode().splitlines()
    assert sum('"time_ns"' in line for line in lines) == sum(
        len(each.curves) for each in hand_made().operators.values()
    )


def test_what_is_not_a_profile(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.json: cannot read the profile: No such file"):
        load_profile(tmp_path / "nothing.json")
    with pytest.raises(InputError, match="not a profile: not JSON"):
        parse_profile(b"{", "mine.json")
    assert 'does not say "format": "simrun-profile"' in refusal([1])
    (tmp_path / "half.json.gz").write_bytes(gzip.compress(profile_bytes(hand_made()))[:200])
    with pytest.raises(InputError, match=r"half\.json\.gz: cannot read the profile"):
        load_profile(tmp_path / "half.json.gz")


def test_another_version() -> None:
    assert "profile version 99, this program reads 1; measure or import it again" in refusal(
        {**document(), "version": 99}
    )


def test_each_problem_has_its_place() -> None:
    content = document()
    content["device"]["num_sms"] = 0
    content["operators"]["gemm"]["curves"][0]["at"][1] = 1
    content["operators"]["gemm"]["curves"][1]["time_ns"][0] = -1.0
    content["surprise"] = 1
    text = refusal(content)
    assert "mine.json: device.num_sms: " in text
    assert "operators.gemm.curves.0: the places of a curve must rise strictly" in text
    assert "operators.gemm.curves.1.time_ns.0: " in text
    assert "surprise: Extra inputs" in text


def test_unknown_operators_and_odd_keys() -> None:
    content = document()
    content["operators"]["gem"] = content["operators"]["gemm"]
    assert "operators.gem: no such operator; known are gemm," in refusal(content)
    content = document()
    content["operators"]["gemm"]["curves"][0]["key"] = ["bfloat16", 1024]
    assert "['bfloat16', 1024] should give dtype, n, k" in refusal(content)
    content["operators"]["gemm"]["curves"][0]["key"] = content["operators"]["gemm"]["curves"][1]["key"]
    assert "is there twice" in refusal(content)


def test_a_damaged_archive_is_told(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(profile_bytes(hand_made())))
    packed[100:120] = bytes(20)
    (tmp_path / "damaged.json.gz").write_bytes(packed)
    with pytest.raises(InputError, match=r"damaged\.json\.gz: cannot read the profile: Error -3 while decompressing"):
        load_profile(tmp_path / "damaged.json.gz")


def test_attributes_of_another_kind() -> None:
    content = document()
    content["operators"]["gemm"]["curves"][0]["key"] = ["bfloat16", 1024, "many"]
    assert "mine.json: operators.gemm.curves.0.key: k should be a whole number, at least 0, found 'many'" in refusal(
        content
    )
    content["operators"]["gemm"]["curves"][0]["key"] = ["bfloat16", -1, 1024]
    assert "n should be a whole number, at least 0, found -1" in refusal(content)
    content["operators"]["gemm"]["curves"][0]["key"] = [16, 1024, 1024]
    assert "dtype should be text, found 16" in refusal(content)


def test_the_peak_that_all_formats_fall_back_on_has_to_be_there() -> None:
    content = document()
    del content["device"]["flops"]["bfloat16"]
    assert refusal(content) == "mine.json: device.flops: no bfloat16, the peak that every number format falls back on"


def test_many_problems_are_cut() -> None:
    content = document()
    for each in content["operators"]["gemm"]["curves"] + content["operators"]["decode_attention"]["curves"]:
        each["at"][0] = -1
    lines = refusal(content).splitlines()
    assert len(lines) == 11
    assert lines[-1].endswith("and 5 more problems")


def test_failed_gates_are_refused_unless_asked_for(tmp_path: Path) -> None:
    gate = Gate(name="throttling", passed=False, detail="clock fell to 60 %")
    profile = Profile.model_validate({**hand_made().model_dump(), "gates": [gate.model_dump()]})
    save_profile(profile, tmp_path / "p.json")
    with pytest.raises(InputError, match="gate throttling failed: clock fell to 60 %; not fit to predict from"):
        load_profile(tmp_path / "p.json")
    assert load_profile(tmp_path / "p.json", allow_failed_gates=True).failed_gates == (gate,)


def test_scenarios_find_built_in_profiles_and_files(tmp_path: Path) -> None:
    h100 = load_gpu("h100-sxm")
    assert find_profile(None, h100).profile.name == find_profile("h100-sxm", h100).profile.name
    save_profile(hand_made(), tmp_path / "mine.json")
    assert find_profile("mine.json", h100, tmp_path).profile.name == "hand-made"
    check_profile("mine.json", h100, tmp_path)
    with pytest.raises(InputError, match="hand-made was measured on h100-sxm"):
        check_profile("mine.json", load_gpu("l40s"), tmp_path)


def test_a_profile_file_is_looked_for_beside_the_scenario_and_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    h100, beside, here = load_gpu("h100-sxm"), tmp_path / "scenarios", tmp_path / "here"
    for folder in (beside, here):
        folder.mkdir()
    monkeypatch.chdir(here)
    save_profile(hand_made(), here / "mine.json")
    assert find_profile("mine.json", h100, beside).profile.name == "hand-made"
    save_profile(hand_made().model_copy(update={"name": "beside"}), beside / "mine.json")
    assert find_profile("mine.json", h100, beside).profile.name == "beside"
    with pytest.raises(InputError) as error:
        find_profile("no.json", h100, beside)
    assert f"no profile file 'no.json'; looked for {beside / 'no.json'} and {here / 'no.json'}" in str(error.value)
    with pytest.raises(InputError) as error:
        find_profile(str(here / "no.json"), h100, beside)
    assert str(error.value).endswith(f"looked for {here / 'no.json'}")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("h100", "did you mean 'h100-sxm'?"),
        ("H100_SXM", "did you mean 'h100-sxm'?"),
        *((other, "built in are a100-80gb-sxm, ") for other in ("l4", "h100-pcie", "h200-nvl", "mi300x")),
    ],
)
def test_another_gpu_s_profile_is_not_suggested(name: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        find_profile(name, load_gpu("h100-sxm"), None)
    assert f"no profile {name!r}; {told}" in str(error.value)


@pytest.mark.parametrize("name", builtin_names())
def test_built_in_profiles_are_small_and_for_the_gpu_they_are_named_after(name: str) -> None:
    path = BUILTIN / f"{name}.json.gz"
    assert path.stat().st_size < 500_000
    profile = load_profile(path)
    assert profile.device.gpu == name
    assert {"gemm", "decode_attention", "prefill_attention"} <= set(profile.operators)
    assert profile.source.origin


@pytest.mark.parametrize("name", ["h200-sxm", "a100-80gb-sxm"])
def test_a_built_in_profile_may_be_named_by_its_file(name: str) -> None:
    by_name, by_file = (find_profile(each, load_gpu(name)) for each in (name, str(BUILTIN / f"{name}.json.gz")))
    assert sorted(by_file.profile.operators) == sorted(by_name.profile.operators)
    assert by_file.device == by_name.device
