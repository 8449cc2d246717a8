"""The profile file: measured operator times of one GPU, how they were got, and how wrong a prediction from them is.

One versioned JSON document, gzip-compressed or not. It is the only thing that the simulator and ``gpu_calibrate``
share: written there (or imported from public tables), read here. ``docs/profile.md`` describes it for people.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sim.errors import InputError, Problem
from sim.latency.profile.layout import KNOWN_TEXTS, OPERATORS, TEXT_ATTRIBUTES

FORMAT: Literal["simrun-profile"] = "simrun-profile"
VERSION = 1
GZIP_MAGIC = b"\x1f\x8b"
MAX_PROBLEMS = 10
PEAK_FORMAT = "bfloat16"
HASH_DIGITS = 16

Key = tuple[str | int, ...]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]


class Strict(BaseModel):
    """Unknown fields are errors, values are not changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Curve(Strict):
    """Times along an operator's axis. ``at`` rises strictly; ``time_ns[i]`` is the median time at ``at[i]``."""

    key: Key
    at: Annotated[tuple[Count, ...], Field(min_length=1)]
    time_ns: tuple[Positive, ...]

    @model_validator(mode="after")
    def _is_a_curve(self) -> Curve:
        if len(self.at) != len(self.time_ns):
            raise ValueError(f"{len(self.at)} places but {len(self.time_ns)} times")
        if any(left >= right for left, right in zip(self.at, self.at[1:], strict=False)):
            raise ValueError("the places of a curve must rise strictly")
        return self


class Operator(Strict):
    """All curves of one operator and what was timed."""

    kernel: str
    """The kernel or library call that was timed, as its maker names it."""
    kernel_hash: str | None = None
    """Of its source, where this project compiled it."""
    origin: str | None = None
    """Where imported times come from: package, version, table."""
    curves: tuple[Curve, ...]


class Source(Strict):
    """How the profile came to be."""

    kind: Literal["measured", "imported"]
    tool: str
    command: str
    origin: str
    """The machine it was measured on, or the tables it was imported from with version and licence."""
    notes: tuple[str, ...] = ()


class Device(Strict):
    """The GPU. Rates are datasheet peaks: what times are compared with, not what is reached."""

    name: str
    """As the driver gives it."""
    gpu: str
    """This project's GPU preset."""
    compute_capability: str | None = None
    num_sms: Count
    memory_bytes: Count
    l2_bytes: Count
    memory_bandwidth_bytes_per_s: Positive
    link_bandwidth_bytes_per_s: Positive | None = None
    """Between GPUs, per direction."""
    flops: dict[str, Positive]
    """Dense FLOP/s by number format (``float32``, ``bfloat16``, ``fp8``, ``int8``); 16 bits share ``bfloat16``."""
    copy_bandwidth_bytes_per_s: Positive | None = None
    """Read plus written by a device-to-device copy, measured in the same run."""


class Host(Strict):
    """Host time of an engine's step, where it was measured."""

    step_ns: Annotated[int, Field(ge=0)]
    request_ns: Annotated[int, Field(ge=0)] = 0
    eager_launch_ns: Annotated[int, Field(ge=0)] | None = None
    """Of one kernel launched without a CUDA graph."""
    origin: str


class Error(Strict):
    """Relative error |predicted / measured - 1| of points that a prediction did not see."""

    median: Annotated[float, Field(ge=0)]
    p90: Annotated[float, Field(ge=0)]
    mean: Annotated[float, Field(ge=0)]
    bias: float
    """Mean of predicted / measured - 1, signed."""
    num_points: Count


class Gate(Strict):
    """A sanity check that the measurements passed or failed."""

    name: str
    passed: bool
    detail: str


class Profile(Strict):
    """One profile file. ``errors`` by operator, then by kind: ``random_points``, ``held_out_curves``, ``repeat``;
    mixed whole-layer steps are under ``mixed_steps`` as ``layers``."""

    format: Literal["simrun-profile"] = FORMAT
    version: int = VERSION
    name: Annotated[str, Field(min_length=1)]
    created: str
    """ISO 8601, UTC."""
    source: Source
    device: Device
    software: dict[str, str] = {}
    operators: dict[str, Operator]
    host: Host | None = None
    errors: dict[str, dict[str, Error]] = {}
    gates: tuple[Gate, ...] = ()
    details: dict[str, object] = {}
    """What the tool that wrote it wants to find again (grid, raw statistics). The simulator does not read it."""

    @model_validator(mode="after")
    def _states_its_peaks(self) -> Profile:
        if PEAK_FORMAT not in self.device.flops:
            raise ValueError(f"device.flops: no {PEAK_FORMAT}, the peak that every number format falls back on")
        return self

    @model_validator(mode="after")
    def _uses_known_operators(self) -> Profile:
        problems = []
        for name, operator in self.operators.items():
            layout = OPERATORS.get(name)
            if layout is None:
                problems.append(f"operators.{name}: no such operator; known are {', '.join(OPERATORS)}")
                continue
            seen: set[Key] = set()
            for position, curve in enumerate(operator.curves):
                where = f"operators.{name}.curves.{position}"
                if len(curve.key) != len(layout.key):
                    problems.append(f"{where}.key: {list(curve.key)} should give {', '.join(layout.key)}")
                elif wrong := _wrong_attributes(layout.key, curve.key):
                    problems.append(f"{where}.key: {wrong}")
                elif curve.key in seen:
                    problems.append(f"{where}.key: {list(curve.key)} is there twice")
                seen.add(curve.key)
        if problems:
            raise ValueError("; ".join(problems[:MAX_PROBLEMS]))
        return self

    @property
    def failed_gates(self) -> tuple[Gate, ...]:
        """Sanity checks that did not pass."""
        return tuple(gate for gate in self.gates if not gate.passed)


def _wrong_attributes(names: tuple[str, ...], key: Key) -> str:
    """What is wrong with the attributes that name a curve; empty where nothing is."""
    for name, value in zip(names, key, strict=True):
        if name in TEXT_ATTRIBUTES:
            if not isinstance(value, str):
                return f"{name} should be text, found {value!r}"
            if name in KNOWN_TEXTS and value not in KNOWN_TEXTS[name]:
                return f"{name} {value!r} is none that is known; there are {', '.join(KNOWN_TEXTS[name])}"
        elif not isinstance(value, int) or value < 0:
            return f"{name} should be a whole number, at least 0, found {value!r}"
    return ""


def load_profile(path: Path, *, allow_failed_gates: bool = False) -> Profile:
    """Read and check a profile file.

    Raises InputError where it cannot be read, is not a profile, is of another version, breaks the format (each
    problem with its place in the document), or where one of its sanity gates failed.
    """
    return parse_profile(read_document(path), str(path), allow_failed_gates=allow_failed_gates)


def read_document(path: Path) -> bytes:
    """A profile file's bytes, uncompressed. Raises InputError where they cannot be read."""
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw.startswith(GZIP_MAGIC) else raw
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(Problem(f"cannot read the profile: {reason}", file=str(path))) from None


def parse_profile(raw: bytes, name: str, *, allow_failed_gates: bool = False) -> Profile:
    """As ``load_profile``, from a file's uncompressed bytes; ``name`` is for messages."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(Problem(f"not a profile: not JSON ({error})", file=name)) from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(Problem(f'not a profile: it does not say "format": "{FORMAT}"', file=name))
    if document.get("version") != VERSION:
        told = document.get("version")
        remedy = "measure or import it again with this version of gpu-calibrate"
        raise InputError(Problem(f"profile version {told!r}, this program reads {VERSION}; {remedy}", file=name))
    try:
        profile = Profile.model_validate_json(raw)
    except ValidationError as error:
        raise InputError(_problems(error, name)) from None
    if not allow_failed_gates:
        refuse_failed_gates(profile, name)
    return profile


def refuse_failed_gates(profile: Profile, name: str) -> None:
    """Raises InputError where a sanity gate failed; ``name`` is the file's."""
    if profile.failed_gates:
        remedy = "not fit to predict from; `gpu-calibrate check` says more"
        raise InputError(
            [Problem(f"gate {gate.name} failed: {gate.detail}; {remedy}", file=name) for gate in profile.failed_gates]
        )


def _problems(error: ValidationError, name: str) -> list[Problem]:
    details = error.errors(include_url=False)
    problems = [
        Problem(": ".join((*place, detail["msg"].removeprefix("Value error, "))), file=name)
        for detail in details[:MAX_PROBLEMS]
        # What is about the document as a whole names its places itself.
        for place in [[".".join(map(str, detail["loc"]))] if detail["loc"] else []]
    ]
    if len(details) > MAX_PROBLEMS:
        problems.append(Problem(f"and {len(details) - MAX_PROBLEMS} more problems", file=name))
    return problems


def profile_bytes(profile: Profile) -> bytes:
    """The document as it is written: one curve per line, fixed order, so that equal profiles are equal bytes."""
    document = profile.model_dump(mode="json")
    operators = document.pop("operators")
    lines = [json.dumps(document, indent=1, ensure_ascii=False)[:-2] + ',\n "operators": {']
    blocks = []
    for name in sorted(operators):
        operator = operators[name]
        curves = [json.dumps(_whole_numbers(curve), separators=(",", ":")) for curve in operator.pop("curves")]
        head = json.dumps(operator, ensure_ascii=False)[:-1]
        blocks.append(f'  "{name}": {head}, "curves": [\n   ' + ",\n   ".join(curves) + "\n  ]}")
    lines.append(",\n".join(blocks) + "\n }\n}\n")
    return "\n".join(lines).encode()


def _whole_numbers(curve: dict[str, Any]) -> dict[str, Any]:
    """Times without a fraction written as integers: a fifth of the file."""
    curve["time_ns"] = [int(time) if time.is_integer() else time for time in curve["time_ns"]]
    return curve


def save_profile(profile: Profile, path: Path) -> None:
    """Write a profile, compressed where the name ends in ``.gz``. A file is replaced whole or not at all.

    Raises OSError.
    """
    data = profile_bytes(profile)
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def profile_hash(profile: Profile) -> str:
    """What the summary tells a run's profile by: the first 16 hex digits of SHA-256 over the written document."""
    return hashlib.sha256(profile_bytes(profile)).hexdigest()[:HASH_DIGITS]
