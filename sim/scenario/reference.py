"""``docs/scenario.md``, made from the schema: ``python -m sim.scenario.reference > docs/scenario.md``."""

from __future__ import annotations

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sim.scenario.docstrings import key_text, section_text
from sim.scenario.fields import Shape, field_shape
from sim.scenario.noise_config import ClientNoiseConfig, NoiseConfig, StepNoiseConfig
from sim.scenario.resolved import flow
from sim.scenario.schema import (
    ClassConfig,
    ClusterConfig,
    CompilationConfig,
    EngineSection,
    GpuConfig,
    ImagesConfig,
    LatencyConfig,
    LoraConfig,
    MeasureConfig,
    NamedSpec,
    OutputsConfig,
    PassConfig,
    PrefixConfig,
    Scenario,
    SessionsConfig,
    SloConfig,
    SpeculativeConfig,
    Stage,
    TraceConfig,
    TrafficFields,
    WorkloadConfig,
)

_HEAD = """\
# The scenario format

Made from the schema by `python -m sim.scenario.reference`; a test keeps the two the same.

A scenario is one YAML 1.2 file. Every key is listed here; any other is an error. `simrun schema` prints
the same as JSON Schema draft-07 for editors.

```yaml
name: chat-on-one-a100
workload:
  requests: 10000
  arrival: {process: poisson, rate: 4.0}
  input_tokens: {dist: lognormal, mean: 512, cv: 0.8}
  output_tokens: {dist: lognormal, mean: 128, cv: 0.8}
engine:
  model: llama-3.1-8b
  gpu: a100-80gb-sxm
slo: {ttft_p95_ms: 500, itl_p99_ms: 100}
```

- Times are seconds (`_s`) or milliseconds (`_ms`), rates requests per second, lengths tokens.
- `1e4` is a whole number; `true`, `on` and `"16"` are not numbers, and only `true` and `false` are true and false.
- Anchors, aliases and `<<` work. A key written twice is an error.
- `--set dotted.key=value` puts a value in before anything is checked. The value is read as YAML, list items go by
  position (`workload.classes.0.share=2`), absent sections are made (`engine.policy.latency_weight=0.5` also turns
  `policy: hybrid` into a section). `--seed N` sets `seed`.
- Every problem is told at once as `file:line:column: what`, with exit code 2. A key that is valid but has no effect
  in this combination is noted under `run.notes` of the summary.
"""

_PARTS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("The file", Scenario),
    ("`workload`, and each of `workload.classes`", TrafficFields),
    ("`workload` only", WorkloadConfig),
    ("`workload.classes` only", ClassConfig),
    ("`trace`", TraceConfig),
    ("`prefix`", PrefixConfig),
    ("`lora`", LoraConfig),
    ("`images`", ImagesConfig),
    ("`sessions`", SessionsConfig),
    ("`cluster`", ClusterConfig),
    ("`engine`", EngineSection),
    ("`gpu` as a section", GpuConfig),
    ("`compilation_config`", CompilationConfig),
    ("`pass_config` in it", PassConfig),
    ("`speculative`", SpeculativeConfig),
    ("`policy`, `predictor` and `router` as a section", NamedSpec),
    ("`latency`", LatencyConfig),
    ("`noise`", NoiseConfig),
    ("`noise.client`", ClientNoiseConfig),
    ("`noise.step`", StepNoiseConfig),
    ("`measure`", MeasureConfig),
    ("`outputs`", OutputsConfig),
)


def scenario_reference() -> str:
    """The whole reference as Markdown."""
    blocks = [_HEAD]
    for title, model in _PARTS:
        keys = [key for key in model.model_fields if key in model.__annotations__]
        blocks.append(f"## {title}\n\n{section_text(model)}\n\n{_table(model, keys)}")
        if model is ClassConfig:
            blocks.append(_union("arrival", "process") + "\n### A stage of `process: stages`\n\n" + _stage())
            blocks.append(_union("input_tokens", "dist"))
    blocks.append(_slo())
    return "\n".join(blocks)


def _table(model: type[BaseModel], keys: list[str]) -> str:
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key in keys:
        shape = field_shape(model, key)
        words = _words(shape).replace("|", "\\|") if shape is not None else ""
        meaning = key_text(model, key).replace("|", "\\|")
        rows.append(f"| `{key}` | {words} | {_default(model.model_fields[key])} | {meaning} |")
    return "\n".join(rows) + "\n"


def _words(shape: Shape) -> str:
    if shape.choices:
        return ", ".join(f"`{choice}`" for choice in shape.choices)
    if shape.discriminator is not None:
        return f"a section with `{shape.discriminator}`, see below"
    if shape.model is not None:
        return "a section, see below"
    if shape.item is not None and shape.item.model is not None:
        return "a list of sections, see below"
    if shape.branches:
        return " or ".join(_branch_words(branch) for branch in shape.branches.values())
    return shape.words()


def _branch_words(branch: Shape) -> str:
    if branch.choices:
        return _words(branch)
    return "a section" if branch.kind is None else branch.words()


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default()
    if isinstance(value, BaseModel) or value is PydanticUndefined:
        return "its defaults"
    return f"`{flow(value)}`"


def _union(key: str, discriminator: str) -> str:
    """One row per branch of a section that names its kind, with the branch's keys."""
    shape = field_shape(TrafficFields, key)
    rows = [f"| `{discriminator}` | keys | meaning |", "|---|---|---|"]
    for name, branch in (shape.branches if shape is not None else {}).items():
        model = branch.model
        if model is None:
            continue
        keys = [_union_key(model, field) for field in model.model_fields if field != discriminator]
        rows.append(f"| `{name}` | {'<br>'.join(keys)} | {section_text(model)} |")
    title = "`arrival`" if key == "arrival" else "`input_tokens`, `output_tokens`, `max_tokens` and `turns`: lengths"
    return f"## {title}\n\n" + "\n".join(rows) + "\n"


def _union_key(model: type[BaseModel], key: str) -> str:
    info = model.model_fields[key]
    shape = field_shape(model, key)
    default = "" if info.is_required() else f", default {_default(info)}"
    listed = shape is not None and shape.item is not None
    what = ("a list" if listed else shape.words()) if shape is not None else ""
    return f"`{key}` ({what}{default}): {key_text(model, key)}"


def _stage() -> str:
    return _table(Stage, list(Stage.model_fields))


def _slo() -> str:
    keys = [key for key in SloConfig.model_fields if key.endswith("_ms")]
    others = [key for key in SloConfig.model_fields if key not in keys]
    metrics = dict.fromkeys(key.split("_")[0] for key in keys)
    statistics = dict.fromkeys(key.split("_")[1] for key in keys)
    return (
        f"## `slo`\n\n{section_text(SloConfig)}\n\nKeys are `METRIC_STATISTIC_ms` with METRIC one of "
        f"{', '.join(f'`{name}`' for name in metrics)} and STATISTIC one of "
        f"{', '.join(f'`{name}`' for name in statistics)}, such as `{keys[3]}`; each a number above 0, or null.\n\n"
        f"{_table(SloConfig, others)}"
    )


if __name__ == "__main__":
    print(scenario_reference(), end="")
