"""The card's state as the driver tells it: NVML through nvidia-ml-py where it is installed, else ``nvidia-smi``."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from gpu_calibrate.device.base import DeviceState

THROTTLE_BITS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
"""Bits of NVML's clocks event reasons, by the names that nvidia-smi uses."""
SMI_TIMEOUT_S = 10.0
SMI_FIELDS = (
    "clocks.sm",
    "clocks.mem",
    "temperature.gpu",
    "power.draw",
    "clocks_event_reasons.active",
    "driver_version",
)


def throttle_names(mask: int) -> tuple[str, ...]:
    """Reasons set in NVML's bit mask; bits that this table does not know are given as numbers."""
    known = tuple(name for bit, name in THROTTLE_BITS.items() if mask & bit)
    unknown = mask & ~sum(THROTTLE_BITS)
    return (*known, f"unknown_{unknown:#x}") if unknown else known


def run_smi(arguments: list[str]) -> str | None:
    """What ``nvidia-smi`` prints; None where it is missing, fails or does not answer."""
    try:
        done = subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def gpu_present() -> bool:
    """Whether the driver tells of an NVIDIA GPU: ``nvidia-smi`` lists one, or CUDA's own library counts one."""
    listed = run_smi(["-L"])
    if listed is not None and listed.startswith("GPU "):
        return True
    return count_gpus() > 0


def count_gpus(load: Callable[[str], Any] = ctypes.CDLL) -> int:
    """GPUs as libcuda counts them, without torch and nvidia-smi; 0 where it is missing or will not start."""
    try:
        cuda = load("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        failed = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    except (OSError, AttributeError):
        return 0
    return 0 if failed else count.value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def parse_state(line: str) -> tuple[DeviceState, str]:
    """State and driver version from one CSV line with the fields of ``SMI_FIELDS``, without units."""
    cells = [cell.strip() for cell in line.split(",")]
    cells += [""] * (len(SMI_FIELDS) - len(cells))
    sm, memory, temperature, power, mask, driver = cells[: len(SMI_FIELDS)]

    def whole(text: str) -> int | None:
        value = _number(text)
        return None if value is None else int(value)

    try:
        reasons = throttle_names(int(mask, 16))
    except ValueError:
        reasons = ()
    return DeviceState(whole(sm), whole(memory), whole(temperature), _number(power), reasons), driver


class StateReader:
    """Reads one card. Never fails: what cannot be read is None."""

    def __init__(self, uuid: str | None = None) -> None:
        self._uuid = uuid
        self._nvml: Any = None
        self._card: Any = None
        self.driver = "unknown"
        try:
            import pynvml  # type: ignore[import-not-found, unused-ignore]

            pynvml.nvmlInit()
            self._card = self._find(pynvml, uuid)
            self.driver = _text(pynvml.nvmlSystemGetDriverVersion())
            self._nvml = pynvml
        except Exception:
            # nvidia-ml-py is optional, and its errors are many: nvidia-smi tells the same.
            self._nvml = None
            self.read()

    @staticmethod
    def _find(nvml: Any, uuid: str | None) -> Any:
        if uuid is not None:
            try:
                return nvml.nvmlDeviceGetHandleByUUID(uuid)
            except Exception:
                return nvml.nvmlDeviceGetHandleByIndex(0)
        return nvml.nvmlDeviceGetHandleByIndex(0)

    def read(self) -> DeviceState:
        """The state now. NVML takes well under a millisecond, nvidia-smi up to half a second."""
        return self._read_smi() if self._nvml is None else self._read_nvml()

    def _read_nvml(self) -> DeviceState:
        nvml, card = self._nvml, self._card

        def ask(name: str, *arguments: Any) -> Any:
            try:
                return getattr(nvml, name)(card, *arguments)
            except Exception:
                return None

        reasons = ask("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:
            reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        power = ask("nvmlDeviceGetPowerUsage")
        return DeviceState(
            sm_clock_mhz=ask("nvmlDeviceGetClockInfo", 1),
            memory_clock_mhz=ask("nvmlDeviceGetClockInfo", 2),
            temperature_c=ask("nvmlDeviceGetTemperature", 0),
            power_w=None if power is None else power / 1000.0,
            throttle=() if reasons is None else throttle_names(int(reasons)),
        )

    def _read_smi(self) -> DeviceState:
        which = [] if self._uuid is None else [f"--id={self._uuid}"]
        out = run_smi([*which, f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader,nounits"])
        if not out:
            return DeviceState()
        state, driver = parse_state(out.splitlines()[0])
        self.driver = driver or self.driver
        return state


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
