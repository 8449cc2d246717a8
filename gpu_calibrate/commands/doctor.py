"""Is this machine fit to be measured? Looks only; what is wrong comes with what to do about it."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gpu_calibrate.device.base import BENIGN, known_preset
from gpu_calibrate.device.state import run_smi, throttle_names

Verdict = Literal["ok", "note", "bad"]
HOT_C = 80
BUSY_PERCENT = 5
USED_SHARE = 0.05
QUERY = (
    "index",
    "name",
    "uuid",
    "driver_version",
    "memory.total",
    "memory.used",
    "utilization.gpu",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "temperature.gpu",
    "power.draw",
    "power.limit",
    "power.default_limit",
    "ecc.mode.current",
    "mig.mode.current",
    "persistence_mode",
    "compute_mode",
    "clocks_event_reasons.active",
    "clocks.applications.graphics",
)
OLD_NAMES = {"clocks_event_reasons.active": "clocks_throttle_reasons.active"}
"""Fields that drivers before 535 know by another name."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    what: str
    verdict: Verdict
    detail: str
    remedy: str = ""


def parse_cards(text: str, fields: Sequence[str] = QUERY) -> list[dict[str, str]]:
    """Rows of ``nvidia-smi --query-gpu=... --format=csv,noheader,nounits`` by field."""
    rows = csv.reader(io.StringIO(text), skipinitialspace=True)
    return [dict(zip(fields, (cell.strip() for cell in row), strict=False)) for row in rows if row]


def parse_processes(text: str) -> list[tuple[int, str, str]]:
    """(pid, name, memory in MiB as printed) of ``--query-compute-apps=pid,process_name,used_memory``."""
    found = []
    for row in csv.reader(io.StringIO(text), skipinitialspace=True):
        if len(row) >= 3 and row[0].strip().isdigit():
            found.append((int(row[0]), row[1].strip(), row[2].strip()))
    return found


def number(card: Mapping[str, str], field: str) -> float | None:
    """A field as a number; None where the driver does not tell."""
    try:
        return float(card.get(field, ""))
    except ValueError:
        return None


def judge_card(card: Mapping[str, str], processes: Sequence[tuple[int, str, str]], visible: int) -> list[Finding]:
    """Everything about one card."""
    name = card.get("name", "unknown")
    total = (number(card, "memory.total") or 0.0) * (1 << 20)
    known = known_preset(name, total) is not None
    findings = [
        Finding("GPU", "ok", f"{name}, {total / (1 << 30):.0f} GiB, {visible} visible")
        if known
        else Finding("GPU", "note", f"{name} is none of the presets", "name the nearest with `run --gpu PRESET`"),
        Finding("driver", "ok", card.get("driver_version", "unknown")),
        _load(card, processes),
        _memory(card),
        _clocks(card),
        _heat(card),
        _power(card),
    ]
    findings += [finding for finding in (_mig(card), _ecc(card), _persistence(card), _compute_mode(card)) if finding]
    return findings


def _load(card: Mapping[str, str], processes: Sequence[tuple[int, str, str]]) -> Finding:
    busy = number(card, "utilization.gpu")
    if processes:
        named = ", ".join(f"{name} (pid {pid}, {memory} MiB)" for pid, name, memory in processes[:4])
        return Finding("other processes", "bad", named, "end them or wait: every time would include their work")
    if busy is not None and busy > BUSY_PERCENT:
        detail = f"none of this machine's, but the GPU is {busy:.0f} % busy"
        return Finding(
            "other processes", "bad", detail, "another container or host uses this GPU: wait, or take another"
        )
    return Finding("other processes", "ok", "none")


def _memory(card: Mapping[str, str]) -> Finding:
    total, used = number(card, "memory.total"), number(card, "memory.used")
    if not total or used is None:
        return Finding("memory", "note", "not told by the driver")
    if used / total > USED_SHARE:
        detail = f"{used / 1024:.1f} of {total / 1024:.1f} GiB in use"
        return Finding("memory", "bad", detail, "free it: a calibration takes up to 40 GB, fewer on a small card")
    return Finding("memory", "ok", f"{(total - used) / 1024:.1f} of {total / 1024:.1f} GiB free")


def _clocks(card: Mapping[str, str]) -> Finding:
    now, most = number(card, "clocks.sm"), number(card, "clocks.max.sm")
    try:
        reasons = throttle_names(int(card.get("clocks_event_reasons.active", ""), 16))
    except ValueError:
        return Finding("clocks", "note", "the driver does not tell why clocks are as they are")
    bad = [reason for reason in reasons if reason not in BENIGN]
    seen = f"SM {now:.0f} of up to {most:.0f} MHz" if now is not None and most is not None else "unknown"
    if bad:
        remedy = "let it cool down, look at fans and power; a calibration would measure this state"
        return Finding("clocks", "bad", f"{seen}; lowered by {', '.join(bad)}", remedy)
    if "applications_clocks_setting" in reasons:
        setting = card.get("clocks.applications.graphics", "?")
        remedy = "the administrator may want to reset them; a profile is true for these clocks only"
        return Finding("clocks", "note", f"{seen}; application clocks set to {setting} MHz", remedy)
    return Finding("clocks", "ok", seen + (f" ({', '.join(reasons)})" if reasons else ""))


def _heat(card: Mapping[str, str]) -> Finding:
    heat = number(card, "temperature.gpu")
    if heat is None:
        return Finding("temperature", "note", "not told by the driver")
    if heat >= HOT_C:
        return Finding("temperature", "bad", f"{heat:.0f} C", "let it cool down before measuring")
    return Finding("temperature", "ok", f"{heat:.0f} C")


def _power(card: Mapping[str, str]) -> Finding:
    limit, default = number(card, "power.limit"), number(card, "power.default_limit")
    if limit is None:
        return Finding("power cap", "note", "not told by the driver")
    if default is not None and limit < 0.99 * default:
        remedy = "a profile is true for this cap only; an administrator can restore the default"
        return Finding("power cap", "note", f"{limit:.0f} W, by default {default:.0f} W", remedy)
    return Finding("power cap", "ok", f"{limit:.0f} W")


def _mig(card: Mapping[str, str]) -> Finding | None:
    if card.get("mig.mode.current") == "Enabled":
        remedy = "the datasheet is of the whole card: measure one that is not partitioned"
        return Finding("MIG", "bad", "on: only a slice of the GPU would be measured", remedy)
    return Finding("MIG", "ok", "off")


def _ecc(card: Mapping[str, str]) -> Finding | None:
    mode = card.get("ecc.mode.current", "")
    if mode == "Disabled":
        return Finding("ECC", "note", "off: memory is a little larger and faster than on servers, where it is on")
    return Finding("ECC", "ok", "on" if mode == "Enabled" else "not on this card")


def _persistence(card: Mapping[str, str]) -> Finding | None:
    if card.get("persistence_mode") == "Disabled":
        return Finding("persistence mode", "note", "off: the first run starts a few seconds later, times are the same")
    return None


def _compute_mode(card: Mapping[str, str]) -> Finding | None:
    mode = card.get("compute_mode", "")
    if mode == "Prohibited":
        return Finding("compute mode", "bad", "prohibited: no program may use this GPU", "ask its administrator")
    return None


def software() -> list[Finding]:
    """torch, CuPy, NVML: present and of one CUDA."""
    findings = []
    for module, package, needed, remedy in (
        ("torch", "torch", True, "pip install 'simrun-llm[torch]'"),
        ("cupy", "CuPy", True, "pip install 'simrun-llm[gpu-cu13]', or gpu-cu12 for CUDA 12 drivers"),
        ("pynvml", "nvidia-ml-py", False, "pip install 'simrun-llm[nvml]': throttling is seen while measuring"),
    ):
        if importlib.util.find_spec(module) is None:
            findings.append(Finding(package, "bad" if needed else "note", "not installed", remedy))
            continue
        try:
            loaded = importlib.import_module(module)
        except Exception as error:
            reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            findings.append(Finding(package, "bad" if needed else "note", f"does not import: {reason}", remedy))
            continue
        findings.append(Finding(package, "ok", str(getattr(loaded, "__version__", "installed"))))
    torch = sys.modules.get("torch")
    if torch is not None and not torch.cuda.is_available():
        built = getattr(torch.version, "cuda", None)
        detail = "sees no GPU" if built else "is a build without CUDA"
        findings.append(Finding("torch and the GPU", "bad", f"torch {detail}", "install a torch built for this driver"))
    return findings


def examine(smi: Callable[[list[str]], str | None] = run_smi) -> list[Finding]:
    """Everything, card by card. ``smi`` runs nvidia-smi with arguments and gives what it prints."""
    fields = list(QUERY)
    text = smi([f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"])
    if text is None:
        old = [OLD_NAMES.get(field, field) for field in fields]
        text = smi([f"--query-gpu={','.join(old)}", "--format=csv,noheader,nounits"])
    if text is None:
        remedy = "install NVIDIA's driver, or give the container its GPU (--gpus all)"
        return [Finding("driver", "bad", "nvidia-smi does not answer: no driver, or no GPU for this container", remedy)]
    cards = parse_cards(text, fields)
    if not cards:
        return [Finding("GPU", "bad", "the driver sees none", "give the container or virtual machine a GPU")]
    processes = smi(["--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader,nounits"]) or ""
    findings = []
    for card in cards:
        found = judge_card(card, parse_processes(processes), len(cards))
        prefix = f"{card.get('index', '?')}: " if len(cards) > 1 else ""
        findings += [Finding(prefix + each.what, each.verdict, each.detail, each.remedy) for each in found]
    return findings
