"""What nvidia-smi prints, read and judged. The samples are written by hand."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import types
from typing import Any

import pytest

from gpu_calibrate.commands import doctor
from gpu_calibrate.commands.doctor import QUERY, Finding, examine, parse_cards, parse_processes
from gpu_calibrate.device import state
from gpu_calibrate.device.base import known_preset, preset_of
from gpu_calibrate.device.state import SMI_FIELDS, StateReader, count_gpus, gpu_present, parse_state, throttle_names
from sim.errors import InputError
from sim.latency.gpus import GPUS

HEALTHY = {
    "index": "0",
    "name": "NVIDIA H200",
    "uuid": "GPU-5f1d",
    "driver_version": "580.12.34",
    "memory.total": "143771",
    "memory.used": "4",
    "utilization.gpu": "0",
    "clocks.sm": "345",
    "clocks.max.sm": "1980",
    "clocks.mem": "3201",
    "temperature.gpu": "31",
    "power.draw": "76.52",
    "power.limit": "700.00",
    "power.default_limit": "700.00",
    "ecc.mode.current": "Enabled",
    "mig.mode.current": "Disabled",
    "persistence_mode": "Enabled",
    "compute_mode": "Default",
    "clocks_event_reasons.active": "0x0000000000000001",
    "clocks.applications.graphics": "1980",
}


def line(**changed: str) -> str:
    card = HEALTHY | {key.replace("__", "."): value for key, value in changed.items()}
    return ", ".join(card[field] for field in QUERY)


def findings(text: str, processes: str = "") -> dict[str, Finding]:
    def smi(arguments: list[str]) -> str:
        return processes if "compute-apps" in arguments[0] else text

    return {finding.what: finding for finding in examine(smi)}


def test_a_healthy_card_is_fit() -> None:
    found = findings(line())
    assert {finding.verdict for finding in found.values()} == {"ok"}
    assert "NVIDIA H200, 140 GiB" in found["GPU"].detail
    assert found["clocks"].detail == "SM 345 of up to 1980 MHz (gpu_idle)"


@pytest.mark.parametrize(
    ("changed", "what", "verdict", "words"),
    [
        ({"temperature__gpu": "86"}, "temperature", "bad", "86 C"),
        ({"clocks_event_reasons__active": "0x0000000000000040"}, "clocks", "bad", "hw_thermal_slowdown"),
        ({"clocks_event_reasons__active": "0x0000000000000004"}, "clocks", "ok", "sw_power_cap"),
        ({"clocks_event_reasons__active": "0x0000000000000002"}, "clocks", "note", "application clocks set to 1980"),
        ({"clocks_event_reasons__active": "[N/A]"}, "clocks", "note", "does not tell"),
        ({"mig__mode__current": "Enabled"}, "MIG", "bad", "slice"),
        ({"ecc__mode__current": "Disabled"}, "ECC", "note", "off"),
        ({"ecc__mode__current": "[N/A]"}, "ECC", "ok", "not on this card"),
        ({"power__limit": "450.00"}, "power cap", "note", "450 W, by default 700 W"),
        ({"power__limit": "[N/A]"}, "power cap", "note", "not told"),
        ({"memory__used": "30000"}, "memory", "bad", "29.3 of 140.4 GiB in use"),
        ({"persistence_mode": "Disabled"}, "persistence mode", "note", "off"),
        ({"compute_mode": "Prohibited"}, "compute mode", "bad", "prohibited"),
        ({"utilization__gpu": "97"}, "other processes", "bad", "97 % busy"),
        ({"name": "NVIDIA T4", "memory__total": "15360"}, "GPU", "note", "none of the presets"),
    ],
)
def test_what_is_wrong_is_said_with_a_remedy(changed: dict[str, str], what: str, verdict: str, words: str) -> None:
    finding = findings(line(**changed))[what]
    assert finding.verdict == verdict
    assert words in finding.detail
    assert finding.remedy or verdict == "ok" or "not told" in words or what in ("ECC", "persistence mode", "clocks")
    if verdict == "bad":
        assert finding.remedy


def test_other_processes_are_named() -> None:
    found = findings(line(), "4711, /usr/bin/python3, 20480\n99, [Not Found], [N/A]\n")
    assert found["other processes"].verdict == "bad"
    assert "/usr/bin/python3 (pid 4711, 20480 MiB)" in found["other processes"].detail
    assert parse_processes("No running processes found\n") == []


def test_several_cards_are_told_apart() -> None:
    found = findings(line() + "\n" + line(index="1", temperature__gpu="90") + "\n")
    assert found["0: temperature"].verdict == "ok"
    assert found["1: temperature"].verdict == "bad"
    assert len(parse_cards(line() + "\n\n")) == 1


def test_no_driver_and_no_card() -> None:
    (finding,) = examine(lambda arguments: None)
    assert (finding.verdict, "does not answer" in finding.detail) == ("bad", True)
    (finding,) = examine(lambda arguments: "")
    assert "sees none" in finding.detail


def test_older_drivers_are_asked_by_the_old_name() -> None:
    asked: list[str] = []

    def smi(arguments: list[str]) -> str | None:
        asked.append(arguments[0])
        if "compute-apps" in arguments[0]:
            return ""
        return line() if "clocks_throttle_reasons.active" in arguments[0] else None

    assert {finding.verdict for finding in examine(smi)} == {"ok"}
    assert len(asked) == 3


def test_software_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    found = {finding.what: finding for finding in doctor.software()}
    assert (found["torch"].verdict, found["CuPy"].verdict, found["nvidia-ml-py"].verdict) == ("bad", "bad", "note")
    assert all(finding.remedy for finding in found.values())
    torch = types.SimpleNamespace(
        __version__="2.11", cuda=types.SimpleNamespace(is_available=lambda: False), version=types.SimpleNamespace()
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())

    def load(name: str) -> Any:
        if name == "cupy":
            raise ImportError("libcublas.so.13: cannot open\nmore")
        return torch

    monkeypatch.setattr(doctor.importlib, "import_module", load)
    found = {finding.what: finding for finding in doctor.software()}
    assert found["CuPy"].detail == "does not import: ImportError: libcublas.so.13: cannot open"
    assert found["torch and the GPU"].detail == "torch is a build without CUDA"


def test_throttle_reasons_by_name() -> None:
    assert throttle_names(0) == ()
    assert throttle_names(0x24) == ("sw_power_cap", "sw_thermal_slowdown")
    assert throttle_names(0x1000) == ("unknown_0x1000",)


def test_a_state_is_read_from_one_line() -> None:
    found, driver = parse_state("1980, 3201, 54, 612.30, 0x0000000000000004, 580.12.34")
    assert (found.sm_clock_mhz, found.memory_clock_mhz, found.temperature_c, found.power_w) == (1980, 3201, 54, 612.3)
    assert (found.throttle, driver) == (("sw_power_cap",), "580.12.34")
    nothing, driver = parse_state("[N/A], [N/A], [N/A], [N/A], [N/A]")
    assert (nothing.sm_clock_mhz, nothing.power_w, nothing.throttle, driver) == (None, None, (), "")
    assert len(SMI_FIELDS) == 6


class FakeNvml(types.ModuleType):
    """As much of pynvml as is asked."""

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlDeviceGetHandleByUUID": "card",
            "nvmlDeviceGetHandleByIndex": "first",
            "nvmlSystemGetDriverVersion": b"580.1",
            "nvmlDeviceGetClockInfo": 1755,
            "nvmlDeviceGetTemperature": 61,
            "nvmlDeviceGetPowerUsage": 500_500,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0x20,
        }
        if name not in answers:
            raise AttributeError(name)
        return lambda *arguments: answers[name]


def test_nvml_is_read_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml("pynvml"))
    reader = StateReader("GPU-1")
    assert reader.driver == "580.1"
    found = reader.read()
    assert (found.sm_clock_mhz, found.temperature_c, found.power_w) == (1755, 61, 500.5)
    # The newer name of the call is not there: the older one answers.
    assert found.throttle == ("sw_thermal_slowdown",)


def test_without_nvml_nvidia_smi_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    asked: list[list[str]] = []

    def smi(arguments: list[str]) -> str:
        asked.append(arguments)
        return "1980, 3201, 54, 612.30, 0x0, 580.12.34\n"

    monkeypatch.setattr(state, "run_smi", smi)
    reader = StateReader("GPU-1")
    assert reader.driver == "580.12.34"
    assert reader.read().temperature_c == 54
    assert asked[0][0] == "--id=GPU-1"
    monkeypatch.setattr(state, "run_smi", lambda arguments: None)
    assert StateReader().read() == state.DeviceState()


def test_an_nvidia_smi_that_is_missing_or_hangs_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (FileNotFoundError("nvidia-smi"), subprocess.TimeoutExpired("nvidia-smi", 10.0)):

        def fails(*_: Any, _error: Exception = error, **__: Any) -> Any:
            raise _error

        monkeypatch.setattr(state.subprocess, "run", fails)
        assert state.run_smi([]) is None


def libcuda(init: int, gpus: int) -> Any:
    """CUDA's library as ctypes loads it: functions that give an error code, 0 where all is well."""

    def count(place: Any) -> int:
        ctypes.cast(place, ctypes.POINTER(ctypes.c_int))[0] = gpus
        return 0

    return types.SimpleNamespace(cuInit=lambda flags: init, cuDeviceGetCount=count)


def test_gpus_are_counted_without_torch() -> None:
    assert count_gpus(lambda name: libcuda(0, 2)) == 2
    assert count_gpus(lambda name: libcuda(100, 2)) == 0, "CUDA_ERROR_NO_DEVICE"
    assert count_gpus(lambda name: types.SimpleNamespace()) == 0, "a library that is not CUDA's"

    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    assert count_gpus(missing) == 0


@pytest.mark.parametrize(
    ("listed", "counted", "there"),
    [
        ("GPU 0: NVIDIA H200 (UUID: GPU-1)\n", 0, True),
        ("No devices were found\n", 0, False),
        (None, 0, False),
        (None, 1, True),
    ],
)
def test_a_gpu_is_there_if_anybody_sees_it(
    monkeypatch: pytest.MonkeyPatch, listed: str | None, counted: int, there: bool
) -> None:
    monkeypatch.setattr(state, "run_smi", lambda arguments: listed)
    monkeypatch.setattr(state, "count_gpus", lambda: counted)
    assert gpu_present() is there


def test_cards_are_known_by_name_and_memory() -> None:
    gib = 1 << 30
    for name, size, preset in (
        ("NVIDIA H200", 139.8, "h200-sxm"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "a100-80gb-sxm"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40gb-sxm"),
        ("NVIDIA H100 80GB HBM3", 79.1, "h100-sxm"),
        ("NVIDIA B200", 178.4, "b200-sxm"),
        ("NVIDIA L40S", 44.4, "l40s"),
        ("NVIDIA GeForce RTX 4090", 23.5, "rtx-4090"),
    ):
        assert preset_of(name, int(size * gib)).name == preset
    assert known_preset("NVIDIA H100 NVL", 93 * gib) is None
    assert known_preset("NVIDIA H200 NVL", 70 * gib) is None, "a slice of a card"
    assert preset_of("anything", 1, "l40s") == GPUS["l40s"]
    with pytest.raises(InputError, match="Tesla T4 with 16 GB is none of the GPU presets"):
        preset_of("Tesla T4", 16 * 10**9)
    with pytest.raises(InputError, match="l40"):
        preset_of("anything", 1, "l40")
