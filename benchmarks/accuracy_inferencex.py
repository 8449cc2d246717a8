"""The rows of InferenceX: fixed numbers of clients, joined to how the server was started, in two halves."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from benchmarks.accuracy_experiment import Experiment, Scenario, Sets, Unscored
from benchmarks.accuracy_recipes import Recipe, engine_settings, read_recipe
from sim.latency.models import MODELS as PRESETS

ROWS = "e2e/inferencex_vllm_rows.csv.gz"
RECIPES = "e2e/inferencex_vllm_recipes.json"

Row = Mapping[str, str]

MODELS = {
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "MiniMaxAI/MiniMax-M2.5": "minimax-m2.5",
    "openai/gpt-oss-120b": "gpt-oss-120b",
    "moonshotai/Kimi-K2.5": "kimi-k2.5",
}
TITLES = {
    "llama-3.1-70b": "Llama-3.1-70B FP8",
    "minimax-m2.5": "MiniMax-M2.5 FP8",
    "gpt-oss-120b": "gpt-oss-120B MXFP4",
    "kimi-k2.5": "Kimi-K2.5 INT4",
}
PRECISIONS = {"llama-3.1-70b": "fp8", "minimax-m2.5": "fp8", "gpt-oss-120b": "fp4", "kimi-k2.5": "int4"}
"""Of the rows that are modelled."""
AS_PUBLISHED = frozenset({"gpt-oss-120b", "kimi-k2.5"})
"""Models whose checkpoint has the formats of its own: ``dtype: auto``."""
UNKNOWN_SEATS = ("gpt-oss-120b", 512)
"""(model, clients) of rows whose server had fewer seats than clients, and it is not recorded how many: TPOT of 512
clients of H100s is that of 5 to 100, and the first token of a thousand-token prompt takes 20 s."""
GPUS = {"h100_sxm": "h100-sxm", "h200_sxm": "h200-sxm", "b200_sxm": "b200-sxm"}
LLAMA_VERSION = "0.10.2"
"""Of the rows of 2025-10-29, which do not record it: ``vllm/vllm-openai:v0.10.2`` is the image of all three GPUs in
``.github/workflows/70b-tmpl.yml`` of their commit (9596d23d). 0.11.0 came on 4 November (7103d660)."""
NOT_TOLD = ("enable_prefix_caching", "compilation_config", "moe_backend")
"""Settings that tell no configurations apart. Random prompts share nothing: with a prefix cache or without, it is the
same experiment. Fused kernels, graphs and kernels of experts came to scenarios after the halves were drawn."""
DRAWN_WITH = 0.9
"""``gpu_memory_utilization`` of recipes without it when the halves were drawn, whatever a version's default is."""
AS_STARTED: Mapping[tuple[str, str], Mapping[str, Any]] = MappingProxyType(
    {
        ("llama-3.1-70b", "h100-sxm"): {
            "kv_cache_dtype": "auto",
            "async_scheduling": False,
            "enable_prefix_caching": True,
            "max_model_len": None,
        },
        ("llama-3.1-70b", "b200-sxm"): {"max_num_seqs": 512},
    }
)
"""What the scripts of that commit make of the recipes, read after the halves were drawn (which stay).

The H100's starts vLLM with ``--config=config.yaml``, and 0.10.2 looks for ``--config`` as a word of its own
(``FlexibleArgumentParser.parse_args``): nothing in that file was used. So KV is in 16 bits, which its queues show (59 s
at TP 2 with 64 clients of 8,192 tokens; FP8 would make it 10 s), and scheduling is synchronous. The other two say
``--config config.yaml``. The B200's script has 512 seats."""
NO_FILES = {"report": False, "trace": False, "requests": False, "steps": False}


def group_name(model: str, gpu: str) -> str:
    """Name of the set of a model on a GPU: ``InferenceX, Llama-3.1-70B FP8, H200``."""
    return f"InferenceX, {TITLES[model]}, {gpu.partition('-')[0].upper()}"


WITHOUT_ROWS = ("kimi-k2.5", "h100-sxm")
"""(model, GPU) that no row is of."""
GROUPS = tuple(
    group_name(model, gpu) for model in MODELS.values() for gpu in GPUS.values() if (model, gpu) != WITHOUT_ROWS
)


@dataclass(frozen=True)
class Configuration:
    """What rows share that stay together: all but lengths and clients."""

    model: str
    gpu: str
    precision: str
    tp: int
    is_expert_parallel: bool
    recipe: str
    """Settings of the engine as the recipe has them, spelled alike."""

    @property
    def key(self) -> str:
        """A hash of what the configuration is; of nothing that was measured."""
        told = "|".join(
            (self.model, self.gpu, self.precision, f"tp{self.tp}", f"ep{self.is_expert_parallel:d}", self.recipe)
        )
        return hashlib.sha256(told.encode()).hexdigest()


def distinct(rows: Iterable[Row]) -> list[dict[str, str]]:
    """Without repetitions: rows that differ in nothing but their ``id``."""
    seen: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for row in rows:
        seen.setdefault(tuple((key, value) for key, value in row.items() if key != "id"), dict(row))
    return list(seen.values())


def reason_not_modelled(row: Row) -> str:
    """Why no run stands for the row; empty where one does."""
    if row["mode"] != "agg":
        return "prompts and outputs on engines of their own (disaggregated): not modelled"
    if row["model"] not in MODELS:
        return "neither the client nor the engine's settings are recorded"
    if MODELS[row["model"]] not in PRESETS:
        return "no preset of the model"
    if row["precision"] != PRECISIONS[MODELS[row["model"]]]:
        return "4-bit floating-point weights (NVFP4): not yet tried"
    if (MODELS[row["model"]], int(row["concurrency"])) == UNKNOWN_SEATS:
        return "512 clients of a server whose number of seats is not recorded"
    if row["system"] not in GPUS:
        return "no profile of this GPU"
    if not row["recipe_files"]:
        return "the recipe of its date is not known"
    return ""


def is_labelled_expert_parallel(row: Row) -> bool:
    """Whether the experiment is labelled as one with whole experts on each GPU.

    Some rows have ``dp`` = ``tp`` and ``moe_ep`` = ``tp`` squared. Their recipes have ``--enable-expert-parallel`` and
    nothing of data parallelism, and the same experiment under its other label has the same times: they are TP with EP.
    """
    return int(row["moe_ep"] or 1) > 1


def is_expert_parallel(row: Row, recipe: Recipe) -> bool:
    """Whether the server had whole experts on each GPU, whatever the label says."""
    return is_labelled_expert_parallel(row) or recipe.always_spreads_experts


def configuration(row: Row, recipe: Recipe) -> Configuration:
    """The row's, with the recipe as its flags tell it at one length and number of clients. Experts are as labelled:
    that some scripts spread them anyway was found after the halves were drawn."""
    drawn = {"gpu_memory_utilization": DRAWN_WITH, **engine_settings(recipe, 1024, 1024, 1)}
    settings = sorted((key, str(value)) for key, value in drawn.items())
    told = ",".join(f"{key}={value}" for key, value in settings if key not in NOT_TOLD)
    return Configuration(
        MODELS[row["model"]],
        GPUS[row["system"]],
        row["precision"],
        int(row["tp"]),
        is_labelled_expert_parallel(row),
        told,
    )


def training_half(configurations: Iterable[Configuration]) -> set[Configuration]:
    """Of each model on each GPU, every second configuration in the order of their hashes; the first is for validation.

    So a model on a GPU with one configuration has it validated, and none is split.
    """
    of: dict[tuple[str, str], list[Configuration]] = {}
    for each in sorted(set(configurations), key=lambda each: each.key):
        of.setdefault((each.model, each.gpu), []).append(each)
    return {each for group in of.values() for each in group[1::2]}


def scenario_of(row: Row, recipe: Recipe) -> Scenario:
    """Ten requests per client, all clients at once, lengths uniform from 0.8 of the stated one."""
    isl, osl, clients = (int(row[key]) for key in ("isl", "osl", "concurrency"))
    settings = engine_settings(recipe, isl, osl, clients)
    model, gpu = MODELS[row["model"]], GPUS[row["system"]]
    settings.update(AS_STARTED.get((model, gpu), {}))
    return {
        "name": _name(row, recipe),
        "workload": {
            "requests": 10 * clients,
            "arrival": {"process": "closed_loop", "concurrency": clients},
            "input_tokens": _uniform(isl),
            "output_tokens": _uniform(osl),
        },
        "engine": {
            "model": model,
            "gpu": gpu,
            "vllm_version": row["backend_version"] or LLAMA_VERSION,
            "tensor_parallel_size": int(row["tp"]),
            "dtype": "auto" if model in AS_PUBLISHED else row["precision"],
            **({"enable_expert_parallel": True} if is_expert_parallel(row, recipe) else {}),
            **settings,
        },
        "latency": {"kind": "profile", "sampling": "plain"},  # its client asks for temperature 0
        "outputs": NO_FILES,
    }


def _uniform(longest: int) -> Scenario:
    return {"dist": "uniform", "low": int(longest * 0.8), "high": longest}


def _name(row: Row, recipe: Recipe) -> str:
    expert = " EP" if is_expert_parallel(row, recipe) else ""
    return (
        f"{row['measured']}, TP {row['tp']}{expert}, {int(row['isl']):,} in / {int(row['osl']):,} out,"
        f" {row['concurrency']} clients"
    )


def add_inferencex(sets: Sets, table: list[dict[str, str]], told: list[dict[str, Any]]) -> None:
    """The rows that are modelled, in halves, and the rest with the reason."""
    recipes = {(each["commit"], each["file"]): read_recipe(each) for each in told}
    rows = distinct(table)
    if len(rows) < len(table):
        sets.unscored.append(
            Unscored("InferenceX, repeated rows", len(table) - len(rows), "the same row under another id")
        )
    found, left_out = [], Counter[tuple[str, str]]()
    for row in rows:
        # Where two scripts ran on a GPU (docker, slurm), the last has the whole command.
        recipe = recipes.get((row["recipe_commit"], row["recipe_files"].rpartition("|")[2]))
        reason = reason_not_modelled(row)
        if reason or recipe is None:
            what = f"InferenceX, {row['model'].rpartition('/')[2]} {row['precision']}, {row['system']}"
            left_out[what, reason or "the recipe of its date is not known"] += 1
        else:
            found.append((row, recipe, configuration(row, recipe)))
    training = training_half(each for _, _, each in found)
    found.sort(key=lambda each: (*_place(each[0]), each[2].key))
    for row, recipe, each in found:
        measured = {"mean_ttft_ms": float(row["ttft_mean_ms"]), "mean_tpot_ms": float(row["tpot_mean_ms"])}
        scenario = scenario_of(row, recipe)
        sets.experiments.append(
            Experiment(
                group_name(each.model, each.gpu),
                scenario["name"],
                scenario,
                measured,
                is_training=each in training,
                version=row["backend_version"] or LLAMA_VERSION,
                unsaid=recipe.unsaid,
            )
        )
    sets.unscored += [Unscored(what, count, reason) for (what, reason), count in sorted(left_out.items())]


def _place(row: Row) -> tuple[int, int, int, bool, int, int, int, str]:
    return (
        list(MODELS).index(row["model"]),
        list(GPUS).index(row["system"]),
        int(row["tp"]),
        is_labelled_expert_parallel(row),
        int(row["isl"]),
        int(row["osl"]),
        int(row["concurrency"]),
        row["measured"],
    )
