"""The tables of ``docs/profiles.md``, from the built-in profiles themselves:

    python -m gpu_calibrate.importers.page

writes them between the page's two marks.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sim.latency.profile.file import Error, Profile, load_profile
from sim.latency.profile.library import BUILTIN, builtin_names, family_files

PAGE = Path(__file__).resolve().parents[2] / "docs" / "profiles.md"
START, END = "<!-- tables: begin -->", "<!-- tables: end -->"
KINDS = ("random_points", "held_out_curves")
OPERATORS = ("gemm", "prefill_attention", "decode_attention", "mixed_attention", "moe", "all_reduce")


def tables() -> str:
    """What stands between the marks."""
    profiles = [load_profile(BUILTIN / f"{name}.json.gz") for name in builtin_names()]
    parts = [path for name in builtin_names() for path in family_files(name).values()]
    return "\n".join(
        [
            *("## What each stands on", "", *_sources(profiles)),
            *("## How wrong each is", "", *_errors(profiles)),
            *("## Beside them, read when a model asks for it", "", *_families(parts)),
        ]
    )


def _families(parts: list[Path]) -> list[str]:
    lines = [
        "| file | operator | curves / points | kB | inner points: median / p90 % (points) | whole shapes |",
        "|---" * 6 + "|",
    ]
    for path in parts:
        profile, size = load_profile(path), path.stat().st_size / 1e3
        for name, operator in profile.operators.items():
            points = sum(len(curve.at) for curve in operator.curves)
            inner, shapes = (_cell(profile.errors.get(name, {}).get(kind)) for kind in KINDS)
            told = f"{len(operator.curves):,} / {points:,} | {size:.0f} | {inner} | {shapes}"
            lines.append(f"| `{profile.name}` | {name} | {told} |")
    return [*lines, ""]


def _sources(profiles: list[Profile]) -> list[str]:
    lines = ["| profile | from | curves / points | kB |", "|---|---|---|---|"]
    for profile in profiles:
        curves = sum(len(operator.curves) for operator in profile.operators.values())
        points = sum(len(curve.at) for operator in profile.operators.values() for curve in operator.curves)
        size = (BUILTIN / f"{profile.name}.json.gz").stat().st_size / 1e3
        lines.append(f"| `{profile.name}` | {profile.source.origin} | {curves:,} / {points:,} | {size:.0f} |")
    return [*lines, ""]


def _errors(profiles: list[Profile]) -> list[str]:
    lines = []
    for kind, told in zip(KINDS, ("Inner points left out", "Whole shapes left out"), strict=True):
        lines += [f"{told}: median / 90th percentile, per cent (number of points)", ""]
        lines += [f"| profile | {' | '.join(OPERATORS)} |", "|---" * (len(OPERATORS) + 1) + "|"]
        for profile in profiles:
            cells = [_cell(profile.errors.get(operator, {}).get(kind)) for operator in OPERATORS]
            lines.append(f"| `{profile.name}` | {' | '.join(cells)} |")
        lines.append("")
    return lines


def _cell(error: Error | None) -> str:
    return "" if error is None else f"{error.median:.1%} / {error.p90:.0%} ({error.num_points:,})".replace("%", "")


def main() -> int:
    """Rewrite the page's tables. Exit code 1 where the page has lost its marks."""
    page = PAGE.read_text(encoding="utf-8")
    if page.count(START) != 1 or page.count(END) != 1:
        print(f"{PAGE}: {START} and {END} should be there once each", file=sys.stderr)
        return 1
    before, rest = page.split(START)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{START}\n\n{tables()}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
