"""The profiles that come with the program, and how a scenario's ``latency.profile`` is found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sim.errors import InputError
from sim.latency.gpus import GpuSpec
from sim.scenario.messages import spelled_alike

if TYPE_CHECKING:
    from sim.latency.profile.file import Device
    from sim.latency.profile.written import AnyProfile

BUILTIN = Path(__file__).parent / "builtin"
SUFFIX = ".json.gz"

SAME_CHIP = {"a100-40gb-sxm": "a100-80gb-sxm"}
"""GPUs without tables of their own, and the one of the same chip whose curves are scaled to their memory."""


@dataclass(frozen=True, slots=True)
class Found:
    """A profile, the GPU whose speed of light its multiples are applied to, and what has to be said about that."""

    profile: AnyProfile
    device: Device
    notes: tuple[str, ...] = ()


def builtin_names() -> list[str]:
    """Built-in profiles, each named as the GPU preset it is for."""
    return sorted(path.name.removesuffix(SUFFIX) for path in BUILTIN.glob(f"*{SUFFIX}"))


def family_files(name: str) -> dict[str, Path]:
    """Files beside a built-in profile, by family (``layout.FAMILIES``): what most models do not need."""
    return {path.name.split(".")[1]: path for path in sorted((BUILTIN / "families").glob(f"{name}.*{SUFFIX}"))}


def profile_for_gpu(gpu: str) -> str | None:
    """The built-in profile that a GPU preset uses by default."""
    name = SAME_CHIP.get(gpu, gpu)
    return name if name in builtin_names() else None


def find_profile(name: str | None, gpu: GpuSpec, base_dir: Path | None = None) -> Found:
    """The profile ``name``, fit for ``gpu``: a built-in one, or a file, relative to ``base_dir`` (the scenario's
    folder), else to the working directory; None = the GPU's own.

    Raises InputError for an unknown name, a file that is no profile or failed its gates, and a profile of another GPU.
    """
    chosen = name if name is not None else profile_for_gpu(gpu.name)
    if chosen is None:
        known = ", ".join(builtin_names()) or "none"
        raise InputError(
            f"latency.kind: there is no built-in profile for {gpu.name} (there is: {known}); measure one with "
            "`gpu-calibrate run --out PROFILE.json` and name it in `latency.profile`, or estimate by `kind: roofline`"
        )
    # Only here, so that a scenario can be checked without numpy.
    from sim.latency.profile.file import load_profile, read_document
    from sim.latency.profile.written import WrittenProfile

    path = _path(chosen, base_dir)
    if path.parent == BUILTIN:
        profile: AnyProfile = WrittenProfile(
            read_document(path), str(path), family_files(path.name.removesuffix(SUFFIX))
        )
    else:
        profile = load_profile(path)
    if profile.device.gpu == gpu.name:
        return Found(profile, profile.device)
    if profile.device.gpu == SAME_CHIP.get(gpu.name):
        note = f"profile {profile.name} was measured on {profile.device.gpu}: scaled to the memory of {gpu.name}"
        return Found(profile, _rescaled(profile.device, gpu), (note,))
    raise InputError(
        f"latency.profile: {profile.name} was measured on {profile.device.gpu}, but engine.gpu is {gpu.name}; name a "
        "profile of that GPU, or set engine.gpu to the profile's"
    )


def check_profile(name: str | None, gpu: GpuSpec, base_dir: Path | None = None) -> None:
    """As ``find_profile``, without reading a built-in profile that is there. Raises InputError."""
    chosen = name if name is not None else profile_for_gpu(gpu.name)
    if chosen is None or chosen not in builtin_names() or chosen != profile_for_gpu(gpu.name):
        find_profile(name, gpu, base_dir)


def _path(name: str, base_dir: Path | None) -> Path:
    if name in builtin_names():
        return BUILTIN / f"{name}{SUFFIX}"
    given = Path(name).expanduser()
    places = list(dict.fromkeys(((base_dir or Path()) / given, given)))
    for path in places:
        if path.is_file():
            return path
    if given.suffix or "/" in name:
        looked = " and ".join(dict.fromkeys(str(path.absolute()) for path in places))
        raise InputError(f"latency.profile: no profile file {name!r}; looked for {looked}")
    close = spelled_alike(name, builtin_names())
    known = ", ".join(builtin_names()) or "none"
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else f"; built in are {known}"
    raise InputError(f"latency.profile: no profile {name!r}{hint}")


def _rescaled(device: Device, gpu: GpuSpec) -> Device:
    return device.model_copy(
        update={
            "name": gpu.name,
            "gpu": gpu.name,
            "memory_bytes": gpu.memory_bytes,
            "memory_bandwidth_bytes_per_s": gpu.memory_bandwidth,
        }
    )
