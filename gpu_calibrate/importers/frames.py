"""What the importers of other simulators' files share: finding and reading tables, gathering operators."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_calibrate.importers.devices import device_of
from gpu_calibrate.importers.source_tables import CurveTable, build_curves
from sim.errors import InputError
from sim.latency.model_spec import ModelSpec
from sim.latency.models import MODELS
from sim.latency.profile.file import Operator, Profile, Source

if TYPE_CHECKING:
    import pandas as pd

TABLE_SUFFIXES = (".csv", ".csv.gz", ".parquet")


def now() -> str:
    """The time of an import, as profiles carry it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def find_tables(path: Path | None, words: Sequence[str], source: str) -> list[Path]:
    """Tables at ``path`` (a file, or a folder and all below) whose file name has one of ``words``, sorted.

    Raises InputError where the path was not given or does not exist.
    """
    if path is None:
        raise InputError(f"importing from {source} needs --path: a folder with its tables, or one of them")
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    found = (file for file in path.rglob("*") if file.is_file() and file.name.endswith(TABLE_SUFFIXES))
    return sorted(file for file in found if any(word in file.name for word in words))


def read_table(path: Path) -> pd.DataFrame:
    """A CSV (gzip-compressed or not) or parquet file. Raises InputError where it cannot be read."""
    import pandas as pd

    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from None


def need_columns(frame: pd.DataFrame, columns: Iterable[str], path: Path) -> None:
    """Raises InputError that names the columns which are missing."""
    missing = [column for column in columns if column not in frame]
    if missing:
        raise InputError(f"{path}: not the layout this reads; columns missing: {', '.join(missing)}")


def model_of(name: str) -> ModelSpec | None:
    """The preset of a Hugging Face name: the longest that its last part begins with; None for an unknown model."""
    short = name.lower().rsplit("/", 1)[-1].removeprefix("meta-").removesuffix("-hf")
    fitting = [preset for preset in MODELS if short == preset or short.startswith(f"{preset}-")]
    return MODELS[max(fitting, key=len)] if fitting else None


@dataclass
class Gathered:
    """Rows by operator, as tables are gone through."""

    rows: dict[str, list[pd.DataFrame]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, operator: str, key: dict[str, Any], at: pd.Series[Any], time_ns: pd.Series[Any]) -> None:
        """Places and times of one operator; parts of the key are single values or columns."""
        import pandas as pd

        frame = pd.DataFrame({"at": at.to_numpy(), "time_ns": time_ns.to_numpy()})
        for name, value in key.items():
            frame[name] = value.to_numpy() if isinstance(value, pd.Series) else value
        self.rows.setdefault(operator, []).append(frame)

    def profile(
        self, preset: str, reported: str, kernels: dict[str, str], source: Source, software: dict[str, str], name: str
    ) -> Profile:
        """All of it as a profile. ``kernels`` by operator says what was timed. Raises InputError where nothing is."""
        import pandas as pd

        device = device_of(preset, reported)
        operators = {}
        for operator, frames in sorted(self.rows.items()):
            curves, cleaning = build_curves(CurveTable(operator, pd.concat(frames, ignore_index=True)), device)
            if curves:
                operators[operator] = Operator(
                    kernel=kernels.get(operator, "not named"), origin=source.origin, curves=curves
                )
            self.notes.append(cleaning.note())
        if not operators:
            raise InputError(f"{source.origin}: no rows of {preset} in it")
        return Profile(
            name=name,
            created=now(),
            source=source.model_copy(update={"notes": (*source.notes, *self.notes)}),
            device=device,
            software=software,
            operators=operators,
        )
