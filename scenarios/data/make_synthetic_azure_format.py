"""Writes synthetic_azure_format.csv: made-up requests in the columns of Azure's 2023 LLM inference traces.

Usage: python scenarios/data/make_synthetic_azure_format.py
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from pathlib import Path

REQUESTS = 300
START = datetime(2024, 1, 1, 9, 0, 0)


def main() -> None:
    draw = random.Random(0)
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    at_s = 0.0
    for _ in range(REQUESTS):
        at_s += draw.expovariate(4.0)
        context_tokens = min(6000, max(1, round(draw.lognormvariate(6.6, 0.9))))
        generated_tokens = min(1000, max(1, round(draw.lognormvariate(5.0, 0.7))))
        instant = (START + timedelta(seconds=at_s)).strftime("%Y-%m-%d %H:%M:%S.%f")
        lines.append(f"{instant}0,{context_tokens},{generated_tokens}")
    target = Path(__file__).with_name("synthetic_azure_format.csv")
    target.write_text("\n".join(lines) + "\n", encoding="ascii", newline="\n")


if __name__ == "__main__":
    main()
