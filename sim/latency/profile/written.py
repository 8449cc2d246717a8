"""A profile read as far as it is used: its head at once, names of an operator's curves, then single curves.

Only of a document that this program wrote and its tests have checked, a built-in profile: ``file.profile_bytes`` puts
every curve on a line of its own, so that a run that uses a tenth of the curves reads a tenth. Every other file is read
and checked whole (``file.load_profile``).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sim.errors import InputError, Problem
from sim.latency.profile.file import (
    HASH_DIGITS,
    Curve,
    Key,
    Profile,
    profile_hash,
    read_document,
    refuse_failed_gates,
)
from sim.latency.profile.layout import family_of

Floats = npt.NDArray[np.float64]

NO_FAMILIES: Mapping[str, Path] = MappingProxyType({})
OPERATORS_FOLLOW = b',\n "operators": {\n'
OPERATOR_ENDS = b"\n  ]}"
CURVES_FOLLOW = b', "curves": [\n'
CURVE = re.compile(rb'\{"key":(\[[^\]]*\]),"at":\[([^\]]*)\],"time_ns":\[([^\]]*)\]\}')
"""A line: key, places, times."""


class Curves(Protocol):
    """The curves of one operator, by position."""

    @property
    def keys(self) -> Sequence[Key]:
        """What names each of them."""
        ...

    def places(self, i: int) -> Floats:
        """The places of a curve: the same array, kept, for all curves with the same places."""
        ...

    def times_ns(self, i: int) -> Floats:
        """The times of a curve at its places."""
        ...

    def distinct_places(self, chosen: Sequence[int]) -> list[Floats]:
        """The places of the ``chosen`` curves, each array once."""
        ...


class CheckedCurves:
    """Curves of a profile that was read whole."""

    def __init__(self, curves: Sequence[Curve]) -> None:
        self._curves = curves
        self._places: dict[tuple[int, ...], Floats] = {}
        self.keys = [curve.key for curve in curves]

    def places(self, i: int) -> Floats:
        """See ``Curves``."""
        at = self._curves[i].at
        known = self._places.get(at)
        if known is None:
            known = self._places[at] = np.array(at, dtype=np.float64)
        return known

    def times_ns(self, i: int) -> Floats:
        """See ``Curves``."""
        return np.array(self._curves[i].time_ns)

    def distinct_places(self, chosen: Sequence[int]) -> list[Floats]:
        """See ``Curves``."""
        first = dict(zip([self._curves[i].at for i in chosen], chosen, strict=True))
        return [self.places(i) for i in first.values()]


class WrittenCurves:
    """Curves as lines of the written document."""

    def __init__(self, block: bytes) -> None:
        """``block``: the lines of an operator."""
        written = CURVE.findall(block)
        self.keys: list[Key] = list(map(tuple, json.loads(b"[" + b",".join([key for key, _, _ in written]) + b"]")))
        self._places = [places for _, places, _ in written]
        self._times = [times for _, _, times in written]
        self._known: dict[bytes, Floats] = {}
        """Places by what is written: many curves share them."""

    def places(self, i: int) -> Floats:
        """See ``Curves``."""
        written = self._places[i]
        known = self._known.get(written)
        if known is None:
            known = self._known[written] = _numbers(written)
        return known

    def times_ns(self, i: int) -> Floats:
        """See ``Curves``."""
        return _numbers(self._times[i])

    def distinct_places(self, chosen: Sequence[int]) -> list[Floats]:
        """See ``Curves``."""
        first = dict(zip([self._places[i] for i in chosen], chosen, strict=True))
        return [self.places(i) for i in first.values()]


def _numbers(written: bytes) -> Floats:
    return np.array(json.loads(b"[" + written + b"]"), dtype=np.float64)


class WrittenOperator:
    """One operator of a ``WrittenProfile``."""

    def __init__(self, kernel: str, block: bytes) -> None:
        self.kernel = kernel
        self._block = block

    @cached_property
    def curves(self) -> Curves:
        """All curves of the operator."""
        return WrittenCurves(self._block)


class WrittenProfile:
    """What a step cost needs of a profile, without its curves until they are used."""

    def __init__(self, raw: bytes, file: str, families: Mapping[str, Path] = NO_FAMILIES) -> None:
        """``raw``: the document as ``file.profile_bytes`` wrote it; ``file`` is for messages. ``families``: files of
        the same GPU that are read when a curve of theirs is asked for (``layout.FAMILIES``).

        Raises InputError where it is not written that way, or where a sanity gate failed.
        """
        self._families = families
        self.read_families: dict[str, WrittenProfile] = {}
        """Those that were asked for so far."""
        self.hash = hashlib.sha256(raw).hexdigest()[:HASH_DIGITS]
        self.operators: dict[str, WrittenOperator] = {}
        head, found, rest = raw.partition(OPERATORS_FOLLOW)
        try:
            if not found:
                raise ValueError("no operators")
            document = json.loads(head + b"}")
            for written in rest.split(OPERATOR_ENDS)[:-1]:
                opening, _, block = written.partition(CURVES_FOLLOW)
                ((name, operator),) = json.loads(b"{" + opening.lstrip(b",\n") + b"}}").items()
                self.operators[name] = WrittenOperator(operator["kernel"], block)
            profile = Profile.model_validate({**document, "operators": {}})
        except (ValueError, KeyError) as error:
            raise InputError(Problem(f"a built-in profile is damaged: {error}; install again", file=file)) from None
        refuse_failed_gates(profile, file)
        self.name, self.source, self.device = profile.name, profile.source, profile.device
        self.host, self.errors = profile.host, profile.errors

    def family(self, name: str) -> WrittenProfile | None:
        """One of ``families``, read when it is first asked for; None where there is no such file."""
        known = self.read_families.get(name)
        if known is None and name in self._families:
            path = self._families[name]
            known = self.read_families[name] = WrittenProfile(read_document(path), str(path))
        return known


AnyProfile = Profile | WrittenProfile


def part_with(profile: AnyProfile, operator: str, key: Key) -> AnyProfile:
    """The profile, or that family file of it, which would hold curves of ``operator`` with such a key."""
    if not isinstance(profile, WrittenProfile):
        return profile
    family = family_of(operator, key)
    return (profile.family(family) if family else None) or profile


def curves_of(profile: AnyProfile, operator: str) -> Curves | None:
    """The curves of ``operator``; None where the profile has none."""
    measured = profile.operators.get(operator)
    if measured is None:
        return None
    if isinstance(measured, WrittenOperator):
        return measured.curves
    return CheckedCurves(measured.curves) if measured.curves else None


def families_read(profile: AnyProfile) -> dict[str, dict[str, str]]:
    """What the summary adds where files beside a built-in profile were read: the hash of each."""
    read = profile.read_families if isinstance(profile, WrittenProfile) else {}
    return {"profile_families": {name: read[name].hash for name in sorted(read)}} if read else {}


def hash_of(profile: AnyProfile) -> str:
    """What the summary tells a run's profile by, see ``file.profile_hash``."""
    return profile.hash if isinstance(profile, WrittenProfile) else profile_hash(profile)
