"""Compiling without a GPU: ptxas' log, the gate on spills, the variants. The compilations themselves run in CI."""

from __future__ import annotations

import sys

import pytest

from gpu_calibrate.commands import cubins
from gpu_calibrate.commands.cubins import Outcome, Usage, Variant, problems, table, usages_of, variants_of
from gpu_calibrate.launches.kernels import FILES, KernelError

LOG = """
ptxas info    : 61 bytes gmem
ptxas info    : Compiling entry function 'paged_attention_split_kv' for 'sm_90'
ptxas info    : Function properties for paged_attention_split_kv
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 152 registers, used 1 barriers
ptxas info    : Compile time = 356.741 ms
ptxas info    : Compiling entry function 'merge_splits' for 'sm_80'
ptxas info    : Function properties for merge_splits
    16 bytes stack frame, 12 bytes spill stores, 40 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 424 bytes cmem[0]
"""
VARIANT = Variant("paged_attention_split_kv", "sm_90", (("HEAD_SIZE", 128), ("BLOCK_SIZE", 16)))


def test_log_gives_registers_and_spills() -> None:
    assert usages_of(LOG) == (
        Usage("paged_attention_split_kv", 152, 0, 0, 0),
        Usage("merge_splits", 32, 16, 12, 40),
    )


@pytest.mark.parametrize("log", ["", "ptxas info : nothing", LOG.split("ptxas         .")[0]])
def test_a_log_of_another_form_is_an_error(log: str) -> None:
    """Silence must not pass for "no spills"."""
    with pytest.raises(KernelError, match="names no registers"):
        usages_of(log)


def test_registers_without_a_stack_frame_are_an_error() -> None:
    log = "\n".join(line for line in LOG.splitlines() if "stack frame" not in line)
    with pytest.raises(KernelError, match="names no stack frame for paged_attention_split_kv"):
        usages_of(log)


def test_spills_and_errors_are_problems() -> None:
    fine, spilling = usages_of(LOG)
    assert problems([Outcome(VARIANT, (fine,))]) == []
    found = problems([Outcome(VARIANT, (fine, spilling)), Outcome(VARIANT, error="no such macro")])
    assert len(found) == 2
    assert "HEAD_SIZE=128 BLOCK_SIZE=16: merge_splits spills (16 bytes of stack, 12 stored, 40 loaded)" in found[0]
    assert found[1].endswith("does not compile: no such macro")


def test_table_shows_the_range_over_variants() -> None:
    fine, spilling = usages_of(LOG)
    other = Usage(fine.entry, 140, 0, 0, 0)
    lines = table([Outcome(VARIANT, (fine, spilling)), Outcome(VARIANT, (other,))]).splitlines()
    assert lines[1].split() == ["paged_attention_split_kv", "sm_90", "128", "2", "140-152", "0"]
    assert lines[2].split() == ["merge_splits", "sm_90", "128", "1", "32", "1"]


def test_every_combination_is_a_variant() -> None:
    counts = {name: len(list(variants_of(file, "sm_80"))) for name, file in FILES.items()}
    assert counts["paged_attention_split_kv"] == 5 * 2 * 2 * 2
    assert counts["rotary"] == 5 * 2
    assert counts["rms_norm"] == 2
    for name, file in FILES.items():
        for variant in variants_of(file, "sm_80"):
            assert {macro for macro, _ in variant.defines} == set(file.defines), name


def test_without_nvrtc_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cuda", None)
    assert cubins.main([]) == 2
    assert "pip install 'simrun-llm[cubins]'" in capsys.readouterr().err


def test_a_spill_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Here:
        def __init__(self, jobs: int) -> None: ...
        def __enter__(self) -> Here:
            return self

        def __exit__(self, *error: object) -> None: ...
        def map(self, function: object, variants: list[Variant], chunksize: int) -> list[Outcome]:
            return [Outcome(variant, usages) for variant in variants]

    for name in ("cuda", "cuda.core"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    monkeypatch.setattr(cubins, "ProcessPoolExecutor", Here)
    usages: tuple[Usage, ...] = usages_of(LOG)[:1]
    arguments = ["--kernel", "paged_attention_split_kv", "--arch", "sm_90"]
    assert cubins.main(arguments) == 0
    usages = usages_of(LOG)
    assert cubins.main(arguments) == 1
    assert "40 variants" in capsys.readouterr().out
