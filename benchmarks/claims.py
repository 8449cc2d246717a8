"""The rules of thumb of LLM serving, as far as one engine goes: claimed, computed, simulated, and what follows.

    python -m benchmarks.claims [--out docs/claims.md] [--only KEY,KEY] [--check]

Writes the page, and fails where a verdict's words are no longer what the numbers say. ``--only`` prints some claims and
writes nothing; ``--check`` runs all and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import claims_batching, claims_compute, claims_memory, claims_parallel, claims_policies
from benchmarks.claims_base import Claim, ClaimBroken

PAGE = Path(__file__).resolve().parent.parent / "docs" / "claims.md"
CHAPTERS: dict[str, dict[str, Callable[[], Claim]]] = {
    "Batching": claims_batching.CLAIMS,
    "Memory": claims_memory.CLAIMS,
    "Several GPUs": claims_parallel.CLAIMS,
    "Policies": claims_policies.CLAIMS,
    "Arithmetic": claims_compute.CLAIMS,
}
INTRODUCTION = """# Rules of thumb, and what is left of them

<!-- Written by `python -m benchmarks.claims`; edit benchmarks/claims*.py instead. -->

What people say about LLM serving, as far as one engine goes. **Computed** is a formula, exact as far as its
assumptions are. **Simulated** is a scenario through `sim.simulate` with seed 0, or the simulator's step cost where a
single step is meant: counts of steps, blocks and seats are exact, times are as good as the measured step cost of the
GPU's built-in profile ([profiles.md](profiles.md)), so a few per cent between two times mean nothing. Every verdict
stands on conditions that `python -m benchmarks.claims` and `tests/test_claims.py` check. Engines are one A100 80 GB
with vLLM's defaults, prefix caching off, unless said otherwise. What has not been simulated or measured says so.

```bash
python -m benchmarks.claims              # this page; about half a minute
python -m benchmarks.claims --only bubbles,fp8-kv
```

The curves behind the main ones: [`notebooks/05_claims.ipynb`](../notebooks/05_claims.ipynb).
"""


def all_claims() -> dict[str, Callable[[], Claim]]:
    """Every claim's maker by key, in the page's order."""
    return {key: make for makes in CHAPTERS.values() for key, make in makes.items()}


def overview(chapters: dict[str, list[Claim]]) -> str:
    """One row per claim."""
    lines = ["| rule of thumb | verdict |", "|---|---|"]
    for claims in chapters.values():
        lines += [f"| [{claim.title}](#{claim.key}) | {claim.short_verdict} |" for claim in claims]
    return "\n".join(lines)


def section(claim: Claim) -> str:
    """One claim."""
    text = (
        f'### <a id="{claim.key}"></a>{claim.title}\n\n'
        f"- **Claimed** ({claim.rows}): {claim.claimed}\n"
        f"- **Computed:** {claim.computed}\n"
        f"- **Simulated:** {claim.simulated}\n"
        f"- **Verdict:** {claim.verdict}\n"
    )
    return f"{text}\n{claim.table}\n" if claim.table else text


def page(chapters: dict[str, list[Claim]]) -> str:
    """The whole page."""
    parts = [INTRODUCTION, overview(chapters) + "\n"]
    for chapter, claims in chapters.items():
        parts.append(f"## {chapter}\n")
        parts += [section(claim) for claim in claims]
    return "\n".join(parts)


def make_all(only: Sequence[str] = ()) -> dict[str, list[Claim]]:
    """Every claim (or those named by key), checked; a broken one is told on stderr and raised at the end."""
    chapters: dict[str, list[Claim]] = {}
    broken = []
    for chapter, makes in CHAPTERS.items():
        for key, make in makes.items():
            if only and key not in only:
                continue
            claim = make()
            try:
                claim.check()
            except ClaimBroken as error:
                broken.append(str(error))
            chapters.setdefault(chapter, []).append(claim)
            print(f"{claim.key}: {claim.short_verdict}", file=sys.stderr, flush=True)
    if broken:
        raise ClaimBroken("\n".join(broken))
    return chapters


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 where a verdict no longer holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=PAGE, help="where the page goes (default: docs/claims.md)")
    parser.add_argument("--only", default="", metavar="KEYS", help="print these claims, write nothing")
    parser.add_argument("--check", action="store_true", help="check all, write nothing")
    options = parser.parse_args(arguments)
    only = [key for key in options.only.split(",") if key]
    missing = [key for key in only if key not in all_claims()]
    if missing:
        parser.error(f"--only: no claim {', '.join(missing)}; there are {', '.join(all_claims())}")
    if options.out.is_dir() or not options.out.parent.is_dir():
        parser.error(f"--out {options.out}: a folder, or in one that is not there; give a file's name")
    try:
        chapters = make_all(only)
    except ClaimBroken as error:
        print(error, file=sys.stderr)
        return 1
    if only:
        print("\n".join(section(claim) for claims in chapters.values() for claim in claims))
    elif not options.check:
        options.out.write_text(page(chapters), encoding="utf-8")
        print(f"{options.out}: {sum(map(len, chapters.values()))} claims", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
