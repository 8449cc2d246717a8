"""Which policy a live vLLM runs: read from the environment or a small file, and refused where vLLM cannot run it.

No vLLM here: ``policies.vllm_plugin`` asks. Every problem is one ``PolicyError`` with its remedy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from policies.base import Policy, PolicyError
from policies.parameters import suggestion
from policies.registry import build_policy, build_predictor

TESTED_VERSIONS = ("0.32.0",)
"""The versions of vLLM whose decisions ``tests/live`` compares with the simulator's."""

POLICY, PREDICTOR, SEED = "SIMRUN_POLICY", "SIMRUN_PREDICTOR", "SIMRUN_SEED"
POLICY_FILE, ALLOW_VERSION = "SIMRUN_POLICY_FILE", "SIMRUN_ALLOW_VLLM"
VARIABLES: Mapping[str, str] = {
    POLICY: "the policy: a name, or {name: hybrid, latency_weight: 0.5}",
    PREDICTOR: "the predictor likewise; default exact (live: the client's hint, else max_tokens)",
    SEED: "seed of predictors with errors; default 0",
    POLICY_FILE: "a YAML file with policy, predictor and seed, instead of the three above",
    ALLOW_VERSION: "a version of vLLM to run with although it was not tested",
}
OTHERS_USE = ("SIMRUN_TRACEBACK",)
FILE_KEYS = ("policy", "predictor", "seed")
PATTERN = re.compile(r"SIMRUN_[A-Z0-9_]*")

Parse = Callable[[str], object]
"""YAML text to values."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for."""

    policy: str
    policy_params: Mapping[str, object]
    predictor: str
    predictor_params: Mapping[str, object]
    seed: int = 0

    def describe(self) -> str:
        """One line for the server's log."""
        policy = _call(self.policy, self.policy_params)
        return f"policy {policy}, predictor {_call(self.predictor, self.predictor_params)}"


def read_settings(environ: Mapping[str, str], parse: Parse) -> Settings:
    """The settings that ``environ`` holds or names a file of.

    Raises:
        PolicyError: nothing set, an unknown variable or key, both forms at once, text that cannot be read.
    """
    for name in environ:
        if PATTERN.fullmatch(name) and name not in VARIABLES and name not in OTHERS_USE:
            known = ", ".join(VARIABLES)
            raise PolicyError(f"environment variable {name} is not known{suggestion(name, VARIABLES)} (known: {known})")
    given = {name for name in (POLICY, PREDICTOR, SEED) if name in environ}
    if POLICY_FILE in environ:
        if given:
            raise PolicyError(
                f"{POLICY_FILE} and {', '.join(sorted(given))} are both set: put everything into the file, or unset it"
            )
        return _from_file(Path(environ[POLICY_FILE]), parse)
    if POLICY not in environ:
        raise PolicyError(
            f"no policy is set: set {POLICY}, for instance {POLICY}=srtf or {POLICY}='{{name: hybrid,"
            f" latency_weight: 0.5}}', or {POLICY_FILE} to a file with the key policy"
        )
    values = {name: _parsed(name, environ[name], parse) for name in given}
    return _settings(values[POLICY], POLICY, values.get(PREDICTOR), PREDICTOR, values.get(SEED), SEED)


def build(settings: Settings) -> Policy:
    """The policy that ``settings`` ask for.

    Raises:
        PolicyError: an unknown name or parameter, a value it cannot use, or a policy that vLLM cannot run.
    """
    predictor = build_predictor(
        settings.predictor, settings.predictor_params, true_output_tokens=None, seed=settings.seed
    )
    policy = build_policy(settings.policy, settings.policy_params, predictor)
    reason = why_not_live(policy)
    if reason is not None:
        raise PolicyError(f"policy {settings.policy} cannot run in vLLM: {reason}")
    return policy


def why_not_live(policy: Policy) -> str | None:
    """Why vLLM cannot run ``policy``: in its own words, else by what it asks for; None where it can."""
    own_word = policy.live_refusal()
    if own_word is not None:
        return own_word
    if policy.pass_over:
        return "it passes over what does not fit, but vLLM's admission stops at the first request that does not"
    if type(policy).victim is not Policy.victim:
        return "it chooses its own victims under KV shortage, but vLLM always takes the largest (rank, arrival)"
    if policy.share_budgets(1) is not None:
        return "it bounds groups of requests within a step, which vLLM's scheduler cannot do"
    return None


def check_version(version: str, allowed: str | None) -> None:
    """Refuse a vLLM that the plugin was not tested with, unless it is the one ``allowed``.

    Raises:
        PolicyError: naming both versions.
    """
    release = version.split("+")[0]
    if release in TESTED_VERSIONS or allowed in (version, release):
        return
    tested = ", ".join(TESTED_VERSIONS)
    instead = f" ({ALLOW_VERSION} allows {allowed}, not this one)" if allowed else ""
    raise PolicyError(
        f"this is vLLM {version}, but the plugin was tested with vLLM {tested}, and the scheduler's insides may differ:"
        f" install vllm=={TESTED_VERSIONS[-1]}, or set {ALLOW_VERSION}={release} to run untested{instead}"
    )


def check_scheduling_policy(scheduling_policy: str) -> None:
    """Refuse any mode of vLLM but ``priority``: ranks are passed on as priorities.

    Raises:
        PolicyError: with the option to use.
    """
    if scheduling_policy != "priority":
        raise PolicyError(
            f"vLLM schedules by {scheduling_policy}, but a policy's ranks are passed on as priorities:"
            " start it with --scheduling-policy priority"
        )


def _from_file(path: Path, parse: Parse) -> Settings:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise PolicyError(f"{POLICY_FILE}={path}: {getattr(error, 'strerror', None) or error}") from error
    values = _parsed(str(path), text, parse)
    if not isinstance(values, dict) or "policy" not in values:
        raise PolicyError(f"{path}: must be a mapping with the key policy (and, if wanted, predictor and seed)")
    for key in values:
        if key not in FILE_KEYS:
            known = ", ".join(FILE_KEYS)
            raise PolicyError(f"{path}: unknown key {key!r}{suggestion(str(key), FILE_KEYS)} (known: {known})")
    return _settings(
        values["policy"],
        f"{path}: policy",
        values.get("predictor"),
        f"{path}: predictor",
        values.get("seed"),
        f"{path}: seed",
    )


def _settings(
    policy: object, policy_place: str, predictor: object, predictor_place: str, seed: object, seed_place: str
) -> Settings:
    policy_name, policy_params = _named(policy, policy_place)
    predictor_name, predictor_params = ("exact", {}) if predictor is None else _named(predictor, predictor_place)
    if seed is None:
        seed = 0
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise PolicyError(f"{seed_place}: must be a whole number, is {seed!r}")
    return Settings(policy_name, policy_params, predictor_name, predictor_params, seed)


def _named(value: object, place: str) -> tuple[str, dict[str, object]]:
    """A name, or a mapping with the name and parameters."""
    if isinstance(value, str) and value.strip():
        return value.strip(), {}
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        return value["name"], {str(key): item for key, item in value.items() if key != "name"}
    raise PolicyError(f"{place}: must be a name or {{name: ..., parameter: value}}, is {value!r}")


def _parsed(place: str, text: str, parse: Parse) -> object:
    try:
        return parse(text)
    except Exception as error:  # whatever the reader of YAML raises
        problem = " ".join(str(error).split())
        raise PolicyError(f"{place}: cannot be read as YAML: {problem}") from error


def _call(name: str, params: Mapping[str, object]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in params.items())})" if params else name
