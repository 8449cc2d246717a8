"""The scenario of a command line that starts vLLM's server: ``sim.live.vllm_args`` the other way round.

A command line says how the engine is set up. It names no GPU (an option does) and no traffic: the scenario gets a
placeholder. What the command leaves out is left out of the scenario too: both sides then take the same by default. What
the scenario format has no place for is listed, by what is simulated otherwise and what is of no matter here.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sim.errors import InputError, Problem
from sim.latency.hub_names import quantised_preset_of
from sim.live.server_command import read_server_command
from sim.live.vllm_args import LORA_VALUES, OFFLOADING_VALUES, PLAIN_VALUES, SCHEDULER_CLS, SWITCHES
from sim.scenario.vllm_version import DEFAULT_VERSION, version_problem

if TYPE_CHECKING:
    from sim.scenario.schema import EngineConfig

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "-tp": "--tensor-parallel-size",
        "-pp": "--pipeline-parallel-size",
        "-dp": "--data-parallel-size",
        "-ep": "--enable-expert-parallel",
        "-sc": "--speculative-config",
        "-cc": "--compilation-config",
        "-q": "--quantization",
    }
)
NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([kKmMgG]?)", re.ASCII)
COMPILATION, CAPTURE, FUSION = "--compilation-config", "max-cudagraph-capture-size", "fuse_allreduce_rms"
OWN_SWITCHES = {
    "async_scheduling": "async-scheduling",
    "enable_lora": "enable-lora",
    "disable_chunked_mm_input": "disable-chunked-mm-input",
}
"""Switches that a command line has only where they matter."""
NAMES = ("all2all_backend", "kv_offloading_backend")
"""Settings whose value is a name, not a number."""
VALUELESS = frozenset(
    {
        *(f"--{name}" for name in SWITCHES.values()),
        *(f"--no-{name}" for name in SWITCHES.values()),
        *("--async-scheduling", "--no-async-scheduling", "--trust-remote-code", "--enable-auto-tool-choice"),
        *("--disable-log-requests", "--disable-log-stats", "--enable-log-requests", "--no-enable-log-requests"),
        *(
            "--disable-uvicorn-access-log",
            "--enable-lora",
            "--no-enable-lora",
            "--disable-chunked-mm-input",
            "--no-disable-chunked-mm-input",
            "--enable-sleep-mode",
            "--headless",
            "--language-model-only",
        ),
    }
)
"""Flags without a value; of others the next word is the value unless it is a flag itself."""
NO_MATTER = frozenset(
    {
        *("--host", "--port", "--api-key", "--served-model-name", "--trust-remote-code", "--tokenizer", "--revision"),
        *("--chat-template", "--tool-call-parser", "--reasoning-parser", "--enable-auto-tool-choice", "--download-dir"),
        *("--disable-log-requests", "--disable-log-stats", "--enable-log-requests", "--no-enable-log-requests"),
        *("--disable-uvicorn-access-log", "--uvicorn-log-level", "--load-format", "--seed", "--generation-config"),
        *("--distributed-executor-backend", "--root-path", "--ssl-keyfile", "--ssl-certfile", "--hf-token"),
    }
)
"""Flags that change neither a decision nor a time that is simulated. Their values are not repeated: some are secret."""
KV_DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "auto": "auto",
        "float16": "float16",
        "bfloat16": "bfloat16",
        "fp8": "fp8",
        "fp8_e4m3": "fp8",
        "int8_per_token_head": "int8",
    }
)
DTYPES: Mapping[str, str] = MappingProxyType(
    {"half": "float16", "float": "float32", **{each: each for each in ("auto", "float16", "bfloat16", "float32")}}
)
QUANTIZATION: Mapping[str, str] = MappingProxyType(
    {
        "fp8": "fp8",
        "int8_per_channel_weight_only": "int8",
        "awq": "int4",
        "awq_marlin": "int4",
        "gptq": "int4",
        "gptq_marlin": "int4",
    }
)
VALUED = (
    *PLAIN_VALUES.values(),
    *LORA_VALUES.values(),
    *OFFLOADING_VALUES.values(),
    *("--dtype", "--quantization", "--kv-cache-dtype", "--scheduling-policy", "--scheduler-cls"),
    *("--speculative-config", COMPILATION, f"--{CAPTURE}"),
)
"""Flags that are read and say nothing without a value."""
MOE_BACKENDS: Mapping[str, str] = MappingProxyType(
    {each: each for each in ("auto", "triton", "flashinfer_cutlass", "marlin")}
)
OF_CHECKPOINTS = frozenset({"compressed-tensors", "fp8", "fbgemm_fp8", "awq", "awq_marlin", "gptq", "gptq_marlin"})
"""Values of ``--quantization`` that name what a repository is stored in anyway."""
PLACEHOLDER: Mapping[str, Any] = MappingProxyType(
    {
        "requests": 1000,
        "arrival": {"process": "poisson", "rate": 1.0},
        "input_tokens": {"dist": "lognormal", "mean": 512, "cv": 0.8, "max": 3000},
        "output_tokens": {"dist": "lognormal", "mean": 128, "cv": 0.8, "max": 1000},
    }
)
FITTED_LENGTHS = ("auto", "-1")
"""Values of ``--max-model-len`` that have vLLM take the longest which fits the memory that it finds."""
TOLD_DEFAULTS = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "dtype", "gpu_memory_utilization")
"""Settings that many command lines leave to vLLM, and that decide much."""


@dataclass(slots=True)
class Imported:
    """A scenario, and the parts of the command line that are not in it."""

    engine: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """Flags that change the real server, which the scenario does not have."""
    no_matter: list[str] = field(default_factory=list)
    """Flags that change nothing that is simulated."""

    def document(self) -> dict[str, Any]:
        """The scenario as plain data."""
        return {"name": "imported", "workload": dict(PLACEHOLDER), "engine": self.engine}

    def comments(self, engine: EngineConfig) -> list[str]:
        """What a reader has to know of it; ``engine`` is what it comes to, defaults filled in."""
        lines = ["the workload is a placeholder: a command line says nothing of the traffic"]
        without = {"gpu_memory_utilization"} if engine.kv_cache_memory_bytes is not None else set[str]()
        told = self.engine.keys() | without
        if absent := [f"{key} {getattr(engine, key)}" for key in TOLD_DEFAULTS if key not in told]:
            lines.append(f"not in the command line, so that vLLM's defaults count: {', '.join(absent)}")
        lines += [f"left out: {each}" for each in self.left_out]
        if self.no_matter:
            lines.append(f"of no matter here: {', '.join(self.no_matter)}")
        return lines


def import_command(text: str, gpu: str, model: str | None = None) -> Imported:
    """Read a command line that starts vLLM's server (``read_server_command``). ``model`` takes the place of the one
    that it names.

    Raises InputError for text that is no such command line.
    """
    command = read_server_command(text)
    found = Imported()
    flags = dict(_flags(command.words, found))
    named = model or flags.pop("--model", None)
    flags.pop("--model", None)
    if not isinstance(named, str) or not named:
        raise InputError("import-args: the command names no model; write `vllm serve MODEL ...`, or give --model")
    if empty := [flag for flag in VALUED if flag in flags and not flags[flag]]:
        raise InputError([Problem(f"import-args: {flag} is without a value") for flag in empty])
    found.engine = {"model": named, "gpu": gpu}
    if command.image is not None:
        _take_version(command.image, found)
    _take_settings(flags, found)
    _take_dtypes(flags, found)
    _take_policy(flags, command.environment, found)
    if (speculative := flags.pop("--speculative-config", None)) is not None:
        _take_speculative(str(speculative), found)
    _take_compilation(flags, found)
    for flag, value in flags.items():
        if flag in NO_MATTER:
            found.no_matter.append(flag)
        else:
            found.left_out.append(_shown(flag, value))
    return found


def _take_version(image: str, found: Imported) -> None:
    """The version that an image's tag names: ``vllm/vllm-openai:v0.15.1``."""
    tag = image.partition("@")[0].rpartition("/")[2].partition(":")[2]
    if version_problem(tag) is None:
        found.engine["vllm_version"] = tag.removeprefix("v")
    else:
        found.left_out.append(f"the image's version {tag or image!r}: vLLM {DEFAULT_VERSION} is simulated")


def _flags(words: list[str], found: Imported) -> Iterator[tuple[str, str | None]]:
    """Flag and value, None for a switch; the model that stands by itself as ``--model``."""
    words = list(words)
    has_model = False
    while words:
        word = words.pop(0)
        if not _is_flag(word):
            if has_model:
                found.left_out.append(word)
            else:
                has_model = True
                yield "--model", word
            continue
        name, equals, value = word.partition("=")
        name, dot, key = name.partition(".")
        name = ALIASES.get(name, name)
        if name.startswith("--"):
            name = "--" + name[2:].replace("_", "-")
        name += dot + key  # a key of a section is spelled as its section has it
        if equals:
            yield name, value
        elif name not in VALUELESS and words and not _is_flag(words[0]):
            yield name, words.pop(0)
            while words and name in ("--served-model-name", "--allowed-origins") and not _is_flag(words[0]):
                words.pop(0)
        else:
            yield name, None


def _is_flag(word: str) -> bool:
    return word.startswith("-") and not re.fullmatch(r"-\d+(\.\d+)?", word)


def _shown(flag: str, value: str | None) -> str:
    return flag if value is None else " ".join(f"{flag} {shlex.quote(value)}".split())


def _take_settings(flags: dict[str, str | None], found: Imported) -> None:
    """The settings that both sides have under one name."""
    for key, flag in {**PLAIN_VALUES, **LORA_VALUES, **OFFLOADING_VALUES}.items():
        if flag in flags:
            value = flags.pop(flag)
            if key == "max_model_len" and value in FITTED_LENGTHS:
                found.left_out.append(_shown(flag, value))
                continue
            found.engine[key] = value if key in NAMES else _number(flag, value or "")
    for key, name in {**SWITCHES, **OWN_SWITCHES}.items():
        for flag, is_on in ((f"--{name}", True), (f"--no-{name}", False)):
            if flag in flags:
                given = flags.pop(flag)
                found.engine[key] = is_on if given is None else given.lower() == "true"


def _number(flag: str, text: str) -> int | float:
    """As vLLM reads it: ``8k`` is 8,000, ``8K`` 8,192."""
    match = NUMBER.fullmatch(text)
    if match is None:
        raise InputError(f"import-args: {flag} {text}: expected a number, such as 8192 or 8k")
    power = {"": 0, "k": 1, "m": 2, "g": 3}[match[2].lower()]
    number = float(match[1]) * (1000 if match[2].islower() else 1024) ** power
    return int(number) if number.is_integer() and "." not in match[1] else number


def _take_dtypes(flags: dict[str, str | None], found: Imported) -> None:
    if quantised_preset_of(found.engine["model"]) is not None and flags.get("--quantization") in OF_CHECKPOINTS:
        del flags["--quantization"]
        found.no_matter.append("--quantization")  # the repository's own format, which its name says
    _take_named(flags, found, "--dtype", DTYPES, "dtype")
    _take_named(flags, found, "--quantization", QUANTIZATION, "dtype")
    _take_named(flags, found, "--kv-cache-dtype", KV_DTYPES, "kv_cache_dtype")
    _take_named(flags, found, "--moe-backend", MOE_BACKENDS, "moe_backend")


def _take_named(flags: dict[str, str | None], found: Imported, flag: str, known: Mapping[str, str], key: str) -> None:
    if flag not in flags:
        return
    value = flags.pop(flag)
    if value is not None and value in known:
        found.engine[key] = known[value]
    else:
        found.left_out.append(_shown(flag, value))


def _take_policy(flags: dict[str, str | None], environment: Mapping[str, str], found: Imported) -> None:
    """vLLM's own two policies, and those of the plugin with their variables."""
    policy = flags.pop("--scheduling-policy", None)
    if policy is not None:
        found.engine["policy"] = policy
    scheduler = flags.pop("--scheduler-cls", None)
    if scheduler is None:
        return
    if scheduler != SCHEDULER_CLS or "SIMRUN_POLICY" not in environment:
        found.left_out.append(_shown("--scheduler-cls", scheduler))
        return
    for variable, key in (("SIMRUN_POLICY", "policy"), ("SIMRUN_PREDICTOR", "predictor")):
        if (text := environment.get(variable)) is not None:
            found.engine[key] = _json(variable, text) if text.startswith("{") else text


def _take_speculative(text: str, found: Imported) -> None:
    given = _json("--speculative-config", text)
    known = {"method", "num_speculative_tokens", "model", "draft_tensor_parallel_size"}
    method = given.get("method") if isinstance(given, dict) else None
    if isinstance(method, str) and method.endswith("_mtp"):
        method = "mtp"  # vLLM's older names, by family
    methods = ("ngram", "draft_model", "eagle", "eagle3", "mtp")
    if not isinstance(given, dict) or method not in methods or not set(given) <= known:
        found.left_out.append(_shown("--speculative-config", text))
        return
    section = {"method": method, "num_speculative_tokens": given.get("num_speculative_tokens", 3)}
    if method == "draft_model" and "model" in given:
        section["draft_model"] = given["model"]
    elif "model" in given and method != "ngram":
        found.left_out.append(f"the model of --speculative-config ({given['model']})")
    found.engine["speculative"] = section


def _take_compilation(flags: dict[str, str | None], found: Imported) -> None:
    """Take those keys of ``--compilation-config`` that a scenario has, as JSON or by dots; list the others as left
    out."""
    section: dict[str, Any] = {}
    text = flags.pop(COMPILATION, None)
    given = _json(COMPILATION, text) if text is not None else {}
    if isinstance(given, dict):
        _take_known(given, section)
    if given:
        found.left_out.append(_shown(COMPILATION, json.dumps(given)))
    for flag in [flag for flag in flags if flag.startswith(f"{COMPILATION}.") or flag == f"--{CAPTURE}"]:
        value = flags.pop(flag)
        told: Any = True if value is None else _loose(value)
        for key in reversed(flag.removeprefix(f"{COMPILATION}.").removeprefix("--").replace("-", "_").split(".")):
            told = {key: told}
        _take_known(told, section)
        if told:
            found.left_out.append(_shown(flag, value))
    if section:
        found.engine["compilation_config"] = section


def _loose(text: str) -> Any:
    """The value of a key by dots: JSON, a number such as ``8k``, ``True``, else the word itself, such as
    ``FULL_DECODE_ONLY``."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return json.loads(text)
    except ValueError:
        return _number("", text) if NUMBER.fullmatch(text) else text


def _take_known(given: dict[str, Any], section: dict[str, Any]) -> None:
    """Move the keys that a scenario has from ``given`` to ``section``."""
    if (name := CAPTURE.replace("-", "_")) in given:
        section[name] = given.pop(name)
    passes = given.get("pass_config")
    if isinstance(passes, dict):
        if FUSION in passes:
            section["pass_config"] = {FUSION: passes.pop(FUSION)}
        if not passes:
            given.pop("pass_config")


def _json(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"import-args: {where}: not JSON: {error}") from None
