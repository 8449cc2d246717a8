"""What the schema finds wrong, as sentences with a place and a remedy."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel

from sim.errors import Problem
from sim.scenario.distributions import ClosedLoopArrival
from sim.scenario.document import Document, Path
from sim.scenario.fields import Shape, allowed_keys, bounded_words, follow, sections
from sim.scenario.types import LARGEST

# Other tools' words for keys of ours (vllm serve, vllm bench serve, and common shorthand).
_ALIASES = {
    "concurrency": "max_concurrency",
    "burstiness": "cv",
    "max_batch_size": "max_num_seqs",
    "max_concurrency": "concurrency",
    "num_clients": "concurrency",
    "num_prompts": "requests",
    "num_replicas": "replicas",
    "num_requests": "requests",
    "pp": "pipeline_parallel_size",
    "qps": "rate",
    "random_input_len": "input_tokens",
    "random_output_len": "output_tokens",
    "request_rate": "rate",
    "scheduler": "policy",
    "scheduling_policy": "policy",
    "std": "cv",
    "swap_space": "swap_space_gib",
    "token_budget": "max_num_batched_tokens",
    "tp": "tensor_parallel_size",
}

# Other tools' words for values of ours, where such a value is possible.
_VALUE_ALIASES = {
    "awq": "int4",
    "awq_marlin": "int4",
    "gptq": "int4",
    "gptq_marlin": "int4",
    "w4a16": "int4",
    "w8a8": "int8",
    "fp8_e4m3": "fp8",
    "fp8_block": "fp8",
    "half": "float16",
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
}

# Keys that are not what they seem to be where they stand.
_REMEDIES: dict[tuple[type[BaseModel], str], str] = {
    (ClosedLoopArrival, "rate"): "a closed loop has no rate; a rate with a bound on what is under way is "
    "{process: poisson, rate: 20, max_concurrency: 16}",
}

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_NOT_LETTERS = re.compile(r"[^a-z]")


def dotted(path: Path) -> str:
    """A path as ``--set`` takes it: ``workload.classes.0.share``."""
    return ".".join(str(step) for step in path)


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """``; did you mean `x`?`` for the nearest of ``known``, or nothing."""
    nearest = nearest_of(str(word), known)
    return f"; did you mean `{nearest}`?" if nearest else ""


def nearest_of(word: str, known: Iterable[str]) -> str | None:
    """The name in ``known`` that ``word`` was most likely meant to be: none with another number in it (``p96`` is no
    ``p99``)."""
    numbers = _NUMBER.findall(word)
    names = {name.lower(): name for name in known if not numbers or _NUMBER.findall(name) == numbers}
    plain = word.lower().replace("-", "_") if word.lower() not in names else word.lower()
    matches = difflib.get_close_matches(plain, names, n=1, cutoff=0.6)
    matches = matches or difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.6)
    if not matches and len(plain) >= 4:
        matches = [name for name in names if plain in name or (len(name) >= 4 and name in plain)][:1]
    return names[matches[0]] if matches else None


def spelled_alike(word: str, known: Iterable[str]) -> list[str]:
    """Those of ``known`` that ``word`` can be another spelling or the beginning of: what has another number is another
    thing, however alike it looks.

    ``lama3.1-8b`` is llama-3.1-8b, ``qwen3-30b`` begins qwen3-30b-a3b; ``qwen3-4b`` is no qwen3-14b, ``float8`` no
    float32.
    """
    low = word.lower()
    names = [
        name
        for name in known
        if _NUMBER.findall(low) == _NUMBER.findall(name.lower()) or name.lower().startswith((f"{low}-", f"{low}_"))
    ]
    bare = {name: _NOT_LETTERS.sub("", name.lower()) for name in names}
    mine = _NOT_LETTERS.sub("", low)
    if mine in bare.values():
        return [name for name in names if bare[name] == mine]
    near = set(difflib.get_close_matches(mine, bare.values(), n=3, cutoff=0.75))
    return [name for name in names if bare[name] in near or name.lower().startswith((f"{low}-", f"{low}_"))]


def shown(value: Any) -> str:
    """A value as it would be written in YAML, shortened."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else (".inf" if value > 0 else "-.inf")
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, str):
        return "empty text" if not value else f"the text '{value if len(value) <= 60 else value[:57] + '...'}'"
    return f"{value:g}" if isinstance(value, float) else str(value)


def translate(errors: Sequence[Any], document: Document) -> list[Problem]:
    """pydantic's errors for ``document`` as Problems; one slip gives one problem."""
    problems: list[Problem] = []
    meant: set[Path] = set()
    missing: list[tuple[Path, type[BaseModel] | None]] = []
    for error in errors:
        path, shape, parent = follow(tuple(error["loc"]))
        kind = error["type"]
        if kind == "missing" and isinstance(path[-1], str):
            missing.append((path, parent))
        elif kind == "extra_forbidden" and parent is not None:
            message, nearest = unknown_key(path, parent)
            problems.append(document.key_place(path).problem(message))
            if nearest:
                meant.add((*path[:-1], nearest))
        else:
            path = path[:-1] if kind == "missing" else path
            shape = follow(tuple(error["loc"])[:-1])[1] if kind == "missing" else shape
            value = value_at(document.data, path)
            if kind == "union_tag_invalid" and shape is not None and shape.discriminator in (value or {}):
                path = (*path, str(shape.discriminator))
                value = value[shape.discriminator]
                shape = Shape(choices=tuple(shape.branches))
            problems.append(document.problem(path, f"`{dotted(path)}` is {_wrong_value(error, value, shape)}"))
    for path, parent in missing:
        if path not in meant:
            problems.append(document.key_place(path[:-1]).problem(_missing_key(path, parent)))
    return problems


def value_at(data: Any, path: Path) -> Any:
    """The value at ``path``; None where there is none."""
    for step in path:
        in_list = isinstance(data, list) and isinstance(step, int) and step < len(data)
        if not in_list and not (isinstance(data, dict) and step in data):
            return None
        data = data[step]
    return data


def unknown_key(path: Path, parent: type[BaseModel]) -> tuple[str, str | None]:
    """The message for a key that ``parent`` has not, and the key of ``parent`` that was meant, if one was."""
    key, section = str(path[-1]), dotted(path[:-1])
    inside = f" in `{section}`" if section else ""
    if remedy := _REMEDIES.get((parent, key)):
        return f"unknown key `{key}`{inside}; {remedy}", None
    keys = list(parent.model_fields)
    alias = _ALIASES.get(key.lower().replace("-", "_").removeprefix("__"))
    if alias in keys:
        return f"unknown key `{key}`{inside}; did you mean `{alias}`?", alias
    plain = key.lower().replace("-", "_")
    owners = _owners(alias or plain, section)
    nearest = nearest_of(key, keys)
    if owners and (nearest is None or difflib.SequenceMatcher(None, plain, nearest).ratio() < 0.9):
        where = " or ".join(f"`{owner}`" for owner in owners)
        return f"unknown key `{key}`{inside}; did you mean {where}?", None
    if nearest:
        return f"unknown key `{key}`{inside}; did you mean `{nearest}`?", nearest
    where = "there" if section else "at the top"
    return f"unknown key `{key}`{inside}; the keys {where} are {allowed_keys(parent)}", None


def _owners(key: str, section: str) -> list[str]:
    """Places of the format, other than ``section``, that have ``key``: the ones not inside lists or classes."""
    found: list[str] = []
    for path, model in sections():
        full = f"{path}.{key}" if path else key
        if key in model.model_fields and path != section and not path.startswith("workload.classes"):
            found += [full] if full not in found else []
    return found if len(found) <= 2 else []


def _missing_key(path: Path, parent: type[BaseModel] | None) -> str:
    section = dotted(path[:-1])
    there = "there" if section else "at the top"
    keys = f"; the keys {there} are {allowed_keys(parent)}" if parent is not None else ""
    shape = follow(path)[1]
    wanted = "section" if shape is not None and shape.model is not None else "key"
    what = f" ({shape.words()})" if shape is not None and shape.kind is not None else ""
    where = f"`{section}` lacks" if section else "the scenario lacks"
    return f"{where} the required {wanted} `{path[-1]}`{what}{keys}"


def _wrong_value(error: Any, value: Any, shape: Shape | None) -> str:
    """The rest of "`key` is ...": the value, what it must be, and how to put it right."""
    kind = error["type"]
    if kind == "union_tag_not_found" and shape is not None and isinstance(value, dict):
        return _no_branch(value, shape)
    if shape is None:
        return f"{shown(value)}, which is not possible here"
    expected = shape
    if shape.branches and shape.discriminator is None:  # name or section, count or length: say both
        return f"{shown(value)}; it must be {expected.words()}"
    words = expected.words()
    too_low = kind.startswith("greater_than") and isinstance(value, int | float) and value < -LARGEST
    if (kind.startswith("less_than") or too_low) and expected.kind is not None:
        words = bounded_words(expected.kind, expected.bounds, math.inf)
    if isinstance(value, float) and not math.isfinite(value):
        words = words.replace("a number", "a finite number")
    if value == "" and shape.kind is str:
        return "empty text; give it a value"
    if kind == "too_short" and value == []:
        return "an empty list; give at least one item" if shape.item else f"an empty list; it must be {words}"
    return f"{shown(value)}; it must be {words}{_remedy(value, shape)}"


def _no_branch(value: dict[str, Any], shape: Shape) -> str:
    key = shape.discriminator or "name"
    meant = next((given for given in value if nearest_of(given, [key])), None)
    hint = f"; did you mean `{key}` by `{meant}`?" if meant else ""
    return f"a section without `{key}`; add `{key}:` and one of {', '.join(shape.branches)}{hint}"


def _remedy(value: Any, shape: Shape) -> str:
    """The likeliest way to put ``value`` right."""
    if value is None:
        return "; give a value, or leave the key out"
    if shape.choices:
        alias = _VALUE_ALIASES.get(value.lower().replace("-", "_")) if isinstance(value, str) else None
        if alias in shape.choices:
            return f"; did you mean `{alias}`?"
        return _choices_meant(value, [str(each) for each in shape.choices]) if isinstance(value, str) else ""
    if isinstance(value, str) and shape.kind in (int, float):
        return "; remove the quotes" if _is_number(value) else ""
    if isinstance(value, str) and shape.kind is bool:
        flag = {"on": "true", "yes": "true", "off": "false", "no": "false", "true": "true", "false": "false"}
        return f"; did you mean {flag[value.lower()]}?" if value.lower() in flag else ""
    if shape.kind is str and isinstance(value, bool | int | float):
        return "; put it in quotes"
    if shape.discriminator is not None and isinstance(value, str):
        nearest = nearest_of(value, shape.branches)
        return f"; did you mean {{{shape.discriminator}: {nearest}, ...}}?" if nearest else ""
    if shape.discriminator == "dist" and isinstance(value, int) and not isinstance(value, bool):
        return f"; did you mean {{dist: fixed, value: {value}}}?"
    return ""


def _choices_meant(value: str, choices: list[str]) -> str:
    alike = [each for each in choices if _NUMBER.findall(value) == _NUMBER.findall(each)]
    return did_you_mean(value, alike)


def _is_number(text: str) -> bool:
    """Whether YAML would read ``text`` as a finite number if it stood there without quotes."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
