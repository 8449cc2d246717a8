"""What a fit found: parameters, how well they are known, errors; as a document and as the file of ``latency.fit``."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.errors import OutputError
from sim.explore.fit_case import Case
from sim.explore.fit_parameters import Parameter
from sim.latency.fitted import FORMAT, Fitted
from sim.version import __version__

TOLD = tuple(
    f"{statistic}_{metric}_ms" for metric in ("ttft", "tpot", "itl", "e2el") for statistic in ("mean", "p50", "p99")
)
"""Figures whose errors are told in the text and in the file; ``--json`` has all."""
HEAD = """\
# What `simrun fit` found from measured runs. In a scenario of the same GPU: latency: {fit: FIT.yaml}
# Only fit, kind, gpu, fitted_on and parameters are read; docs/fit.md says what each parameter is.
"""


@dataclass(slots=True)
class Fit:
    """What was found. ``fit_report`` says it in words."""

    fitted: Fitted
    cases: list[Case]
    parameters: list[Parameter]
    """All that were asked of the runs; those of ``silent`` kept their defaults."""
    widths: dict[str, float]
    """Half of the 95 % interval of each fitted one, in its spreads."""
    silent: list[str]
    together: list[list[str]]
    """Groups that the figures cannot tell apart."""
    before: list[dict[str, float]]
    """Errors in per cent by figure, of each run, without the fit."""
    after: list[dict[str, float]]
    left_out: list[dict[str, float]] | None
    """The same of each run under a fit to the others; None for a single run."""
    spells: str
    """What was found of spells of slow steps, as a sentence."""
    notes: list[str]

    @property
    def values(self) -> dict[str, float]:
        """Fitted parameters by name."""
        return dict(self.fitted.values)

    def document(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return _document(self)

    def write(self, name: str | os.PathLike[str]) -> None:
        """Write the file that ``latency.fit`` takes. Raises OutputError."""
        _write(self, os.fspath(name))

    def interval(self, parameter: Parameter) -> tuple[float, float]:
        """Where the parameter is in 19 of 20 cases, if figures err as is supposed; within its bounds."""
        value = self.values.get(parameter.name, parameter.default)
        width = self.widths.get(parameter.name, math.inf)
        place, (lowest, highest) = parameter.place(value), parameter.bounds
        low, high = (parameter.value(min(max(each, lowest), highest)) for each in (place - width, place + width))
        return low, high


def _document(fit: Fit) -> dict[str, Any]:
    """Everything that was found, as plain data."""
    return {
        "fit": FORMAT,
        "simrun": __version__,
        "kind": fit.fitted.kind,
        "gpu": fit.fitted.gpu,
        "fitted_on": [dict(each) for each in fit.fitted.fitted_on],
        "parameters": fit.values,
        "about_parameters": {each.name: _about(fit, each) for each in fit.parameters},
        "says_nothing_of": fit.silent,
        "cannot_tell_apart": fit.together,
        "spells": fit.spells,
        "errors_percent": {
            "without_fit": mean_errors(fit.before),
            "with_fit": mean_errors(fit.after),
            "left_out": None if fit.left_out is None else mean_errors(fit.left_out),
        },
        "runs": [
            {
                "file": case.run.file,
                "source": case.run.source,
                "scenario": case.loaded.scenario.name,
                "figures": len(case.run.figures),
                "errors_percent": {
                    "without_fit": fit.before[index],
                    "with_fit": fit.after[index],
                    "left_out": None if fit.left_out is None else fit.left_out[index],
                },
            }
            for index, case in enumerate(fit.cases)
        ],
        "notes": fit.notes,
    }


def _about(fit: Fit, parameter: Parameter) -> dict[str, Any]:
    value = fit.values.get(parameter.name)
    low, high = fit.interval(parameter)
    return {
        "value": parameter.default if value is None else value,
        "default": parameter.default,
        "least": parameter.least,
        "most": parameter.most,
        "fitted": value is not None,
        "interval": None if value is None else [low, high],
    }


def mean_errors(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean over the runs of each figure's error, sign dropped."""
    keys = dict.fromkeys(key for run in runs for key in run)
    told = {key: [abs(run[key]) for run in runs if key in run] for key in keys}
    return {key: sum(each) / len(each) for key, each in told.items()}


def fit_yaml(fit: Fit) -> str:
    """The file that ``latency.fit`` takes."""
    from ruamel.yaml import YAML

    told = _document(fit)
    del told["simrun"]
    for errors in [told["errors_percent"], *(run["errors_percent"] for run in told["runs"])]:
        for name, each in errors.items():
            if each is not None:
                errors[name] = {key: round(value, 2) for key, value in each.items() if key in TOLD}
    for about in told["about_parameters"].values():
        if about["interval"] is not None:
            about["interval"] = [float(f"{each:.4g}") for each in about["interval"]]
    yaml, text = YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 120
    yaml.dump(told, text)
    return HEAD + text.getvalue()


def _write(fit: Fit, name: str) -> None:
    """Write ``fit_yaml`` to the file ``name``, there as a whole or as it was. Raises OutputError."""
    path = Path(name)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(fit_yaml(fit), encoding="utf-8", newline="\n")
        part.replace(path)
    except OSError as error:
        raise OutputError(f"--out {name}", error) from error
    finally:
        part.unlink(missing_ok=True)
