"""Where tables of ``aiconfigurator-core`` lie, which version of one is read, and a table on its way to curves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_calibrate.importers.source_tables import CurveTable, Reuse
from sim.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

PACKAGE = "aiconfigurator_core"
DISTRIBUTION = "aiconfigurator-core"
LICENCE = "Apache-2.0"

GPU_NAMES = {
    "a100_sxm": "a100-80gb-sxm",
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "b200_sxm": "b200-sxm",
    "b300_sxm": "b300-sxm",
    "gb200": "gb200",
    "l40s": "l40s",
    "rtx_pro_6000_server": "rtx-pro-6000",
}
"""Their name of a GPU -> preset."""

KNOWN_BAD = {
    ("h200_sxm", "vllm", "0.19.0"): "its context attention table is wrong",
    ("l40s", "vllm", "0.14.0"): "its context attention with FP8 KV is wrong",
    ("a100_sxm", "trtllm", ""): "its decode attention reads memory at 165 % of the peak bandwidth",
}
"""(GPU, engine, version; "" = every version) of tables that are not to be believed."""


@dataclass(frozen=True)
class Place:
    """Where one GPU's tables of one engine version are."""

    data: Path
    gpu: str
    engine: str
    version: str

    def table(self, family: str, name: str) -> tuple[pd.DataFrame, str] | None:
        """A table and the version it is of: the newest that is not newer than asked for. None: there is none."""
        import pandas as pd

        folder = self.data / self.gpu / family / self.engine
        fitting = [v for v in versions(folder, name) if order(v) <= order(self.version)]
        if not fitting:
            return None
        path = folder / fitting[-1] / f"{name}_perf.parquet"
        try:
            return pd.read_parquet(path), fitting[-1]
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path}: {error}") from None

    def origin(self, table: str, version: str) -> str:
        return f"{DISTRIBUTION} {package_version(self.data)}, {self.gpu}, {self.engine} {version}, {table}"


@dataclass(frozen=True)
class Table:
    curves: CurveTable
    kernel: str
    origin: str
    reported_device: str | None
    notes: tuple[str, ...] = ()


Found = list[tuple[str, Table]]


def make_table(
    operator: str,
    rows: pd.DataFrame,
    origin: str,
    columns: dict[str, Any],
    reuse: Reuse | None = None,
    notes: tuple[str, ...] = (),
) -> tuple[str, Table]:
    """Rows with the given columns beside ``latency`` in milliseconds."""
    import pandas as pd

    frame = pd.DataFrame({**columns, "time_ns": rows["latency"].to_numpy(dtype=np.float64) * 1e6})
    kernels = sorted(str(kernel) for kernel in rows["kernel_source"].unique())
    names = rows["device"].dropna().tolist() if "device" in rows else []
    return operator, Table(
        CurveTable(operator, frame, reuse),
        kernel=", ".join(kernels),
        origin=origin,
        reported_device=str(names[0]) if names else None,
        notes=notes,
    )


def need_layout(rows: pd.DataFrame, columns: tuple[str, ...], origin: str) -> None:
    """Raise InputError for rows without these columns."""
    missing = [column for column in (*columns, "latency", "kernel_source") if column not in rows]
    if missing:
        raise InputError(f"{origin}: not the layout this reads; columns missing: {', '.join(missing)}")


def find_place(gpu: str, engine: str, version: str | None, path: Path | None) -> Place:
    """Where a GPU's tables are, of the newest version unless told. Raises InputError."""
    data = data_folder(path)
    engines = sorted({folder.name for folder in (data / gpu / "gemm").glob("*") if folder.is_dir()})
    if not engines:
        raise InputError(f"{data}: no tables of {gpu} there")
    if engine not in engines:
        raise InputError(f"--engine {engine}: {gpu} has tables of {', '.join(engines)}")
    found = versions(data / gpu / "gemm" / engine, "gemm")
    if version is None:
        version = found[-1] if found else ""
    elif version not in found and (gpu, engine, version) not in KNOWN_BAD:
        raise InputError(f"--version {version}: {gpu} has GEMM tables of {engine} {', '.join(found)}")
    for asked in (version, ""):
        wrong = KNOWN_BAD.get((gpu, engine, asked))
        if wrong is not None:
            raise InputError(f"{gpu}, {engine} {version} is refused: {wrong}; take another version or engine")
    return Place(data, gpu, engine, version)


def data_folder(path: Path | None) -> Path:
    """The folder with a folder for each GPU. Raises InputError."""
    if path is None:
        spec = find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                f"{DISTRIBUTION} is not installed: `pip install {DISTRIBUTION}`, or `--path` to where it is unpacked"
            )
        path = Path(next(iter(spec.submodule_search_locations)))
    for inner in ("", "data", "systems/data", f"{PACKAGE}/systems/data"):
        if any((path / inner / gpu).is_dir() for gpu in GPU_NAMES):
            return path / inner
    raise InputError(f"{path}: no {DISTRIBUTION} there (looked for systems/data/<gpu>)")


def versions(folder: Path, table: str) -> list[str]:
    """Versions that have a table, oldest first."""
    found = [path.parent.name for path in folder.glob(f"*/{table}_perf.parquet")]
    return sorted(found, key=order)


def order(version: str) -> tuple[tuple[int, ...], str]:
    """1.2.0rc5 before 1.2.0, numbers as numbers."""
    release = re.match(r"[0-9.]*", version)
    numbers = tuple(int(part) for part in release.group().split(".") if part) if release else ()
    rest = version[release.end() :] if release else version
    return numbers, rest or "~"


def package_version(data: Path) -> str:
    """Of the package beside the data, from its metadata; "unknown" where there is none."""
    for folder in (data, *data.parents):
        for info in sorted(folder.glob(f"{PACKAGE}-*.dist-info")):
            return info.name.removeprefix(f"{PACKAGE}-").removesuffix(".dist-info")
        if folder.name == PACKAGE and folder.parent == folder:
            break
    return "unknown"
