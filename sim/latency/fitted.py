"""What ``simrun fit`` found of a deployment: factors of a step's terms, host and client times, read from its file.

The file is YAML. Only ``fit`` (the format), ``kind``, ``gpu``, ``fitted_on`` and ``parameters`` are read; the rest
tells a reader where they come from.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

from sim.errors import InputError, Problem

if TYPE_CHECKING:
    from sim.latency.profile.integers import Floats

FORMAT = 1
Kind = Literal["roofline", "constant", "profile"]

TERMS_OF = {
    "matrices": ("matrices", "lm_head"),
    "experts": ("experts",),
    "attention": ("prefill_attention", "decode_attention"),
    "all_reduce": ("all_reduce", "all_gather", "send_receive", "dispatch", "combine"),
}
"""Factors, and the terms of a step that each multiplies. A roofline parts a step into attention and ``matrices``, which
is all the rest there."""
FACTOR_OF = {term: factor for factor, terms in TERMS_OF.items() for term in terms}


class Limits(NamedTuple):
    """What a parameter can be at all."""

    least: float
    most: float
    kinds: frozenset[str]
    """Step costs that have it."""


_MEASURED, _ANY = frozenset({"profile", "roofline"}), frozenset({"profile", "roofline", "constant"})
PARAMETERS: dict[str, Limits] = {
    "matrices": Limits(0.1, 10.0, _MEASURED),
    "experts": Limits(0.1, 10.0, frozenset({"profile"})),
    "attention": Limits(0.1, 10.0, _MEASURED),
    "all_reduce": Limits(0.1, 10.0, frozenset({"profile"})),
    "host_step_ms": Limits(0.0, 1e3, _MEASURED),
    "host_request_us": Limits(0.0, 1e5, _MEASURED),
    "exposed_step_ms": Limits(0.0, 1e3, _MEASURED),
    "exposed_request_us": Limits(0.0, 1e5, _MEASURED),
    "step_ms": Limits(1e-6, 3.6e6, frozenset({"constant"})),
    "token_us": Limits(0.0, 1e9, frozenset({"constant"})),
    "client_ms": Limits(0.0, 1e5, _ANY),
    "late_ms": Limits(0.0, 1e5, _ANY),
    "spell_share": Limits(0.0, 0.9, _ANY),
    "spell_factor": Limits(1.0, 1e3, _ANY),
    "spell_s": Limits(0.001, 1e5, _ANY),
}
"""``host_``: of engines that do not schedule ahead, whose host time all shows. ``exposed_``: host time that
shows although the engine schedules ahead. ``client_ms``: between client and engine, there and back. ``late_ms``: how
late those few requests are that are late at all (``latency.noise``). ``spell_``: the share of the time that spells of
slow steps take, what they multiply steps by, how long one lasts; all three or none."""

SPELL_NAMES = frozenset(name for name in PARAMETERS if name.startswith("spell_"))


@dataclass(frozen=True, slots=True)
class Fitted:
    """Parameters by name; one that is missing is as it would be without a fit."""

    kind: Kind
    gpu: str
    values: Mapping[str, float] = field(default_factory=dict)
    fitted_on: tuple[Mapping[str, Any], ...] = ()
    """Engines whose runs were fitted: model, dtype and the sizes that they are split by."""
    source: str | None = None
    """The file."""

    def factor(self, term: str) -> float:
        """What the time of a step's ``term`` is multiplied by."""
        return self.values.get(FACTOR_OF.get(term, ""), 1.0)

    def ns(self, name: str) -> int | None:
        """Nanoseconds of a time (``client_ms``: 4.0 gives 4,000,000); None where it was not fitted."""
        value = self.values.get(name)
        return None if value is None else round(value * (1e6 if name.endswith("_ms") else 1e3))

    def exposed_ns(self, rows: Floats) -> Floats:
        """Host time that shows in steps with ``rows`` requests in them, though the engine schedules ahead."""
        step_ns, request_ns = self.ns("exposed_step_ms") or 0, self.ns("exposed_request_us") or 0
        return (step_ns + request_ns * rows) * (rows > 0)

    def without_exposed(self) -> Fitted:
        """The same without host time in the steps: for a draft model, whose passes belong to its target's step."""
        kept = {name: value for name, value in self.values.items() if not name.startswith("exposed_")}
        return Fitted(self.kind, self.gpu, kept, self.fitted_on, self.source)

    def describe(self) -> dict[str, object]:
        """For the summary."""
        return {"file": self.source, "parameters": dict(self.values)}


def fit_path(name: str, base_dir: Path | None) -> Path:
    """The file ``name``, relative to the scenario's folder, else to the working directory. Raises InputError."""
    given = Path(name).expanduser()
    places = list(dict.fromkeys(((base_dir or Path()) / given, given)))
    for path in places:
        if path.is_file():
            return path
    looked = " and ".join(dict.fromkeys(str(path.absolute()) for path in places))
    raise InputError(f"latency.fit: no file {name!r}; looked for {looked}. `simrun fit ... --out FIT.yaml` writes one")


def load_fit(name: str, base_dir: Path | None = None) -> Fitted:
    """The fit in the file ``name``. Raises InputError where there is none, or it is not what ``simrun fit`` writes."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path = fit_path(name, base_dir)
    try:
        document = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(Problem(f"cannot be read: {os.strerror(error.errno or 0)}", str(path))) from None
    except (UnicodeDecodeError, YAMLError, ValueError, RecursionError) as error:
        first = next(iter(str(error).splitlines()), "")
        raise InputError(Problem(f"not YAML as `simrun fit` writes it: {first}", str(path))) from None
    problems, found = _read(document)
    if problems or found is None:
        raise InputError([Problem(f"latency.fit: {each}", str(path)) for each in problems])
    return Fitted(found.kind, found.gpu, found.values, found.fitted_on, str(path))


def _read(document: Any) -> tuple[list[str], Fitted | None]:
    """(problems, the fit) of a file's content."""
    if not isinstance(document, dict) or "fit" not in document:
        return ["not a file of `simrun fit`: the key `fit` is missing"], None
    if document["fit"] != FORMAT:
        return [f"a file of format {document['fit']!r}; this version reads {FORMAT}"], None
    problems = []
    kind, gpu, values = document.get("kind"), document.get("gpu"), document.get("parameters")
    if kind not in get_args(Kind):
        problems.append(f"`kind` must be one of {', '.join(get_args(Kind))}, found {kind!r}")
    if not isinstance(gpu, str):
        problems.append(f"`gpu` must name a GPU, found {gpu!r}")
    if not isinstance(values, dict) or not values:
        problems.append("`parameters` must be a section of numbers")
        values = {}
    told = document.get("fitted_on", [])
    if not isinstance(told, list) or not all(isinstance(each, dict) for each in told):
        problems.append("`fitted_on` must be a list of engines")
        told = []
    for name, value in values.items():
        problems += _value_problems(str(name), value, str(kind))
    if 0 < len(SPELL_NAMES & values.keys()) < len(SPELL_NAMES):
        problems.append(f"`parameters`: {', '.join(sorted(SPELL_NAMES))} go together, and some are missing")
    if problems:
        return problems, None
    numbers = {name: float(value) for name, value in values.items()}
    return [], Fitted(cast(Kind, kind), str(gpu), numbers, tuple(told))


def _value_problems(name: str, value: Any, kind: str) -> list[str]:
    limits = PARAMETERS.get(name)
    if limits is None:
        close = get_close_matches(name, PARAMETERS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(PARAMETERS)}"
        return [f"no parameter {name!r}; {hint}"]
    if kind in _ANY and kind not in limits.kinds:
        return [f"`{name}` is no parameter of kind {kind}"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return [f"`{name}` must be a number, found {value!r}"]
    if not limits.least <= value <= limits.most:
        return [f"`{name}` must be between {limits.least:g} and {limits.most:g}, found {value:g}"]
    return []
