"""Entry points of the commands, under a name that nothing else has.

``sim`` and ``policies`` are common names. Where a folder of such a name is on the path before this project (the
current one, with ``PYTHONPATH=.``), ``import sim`` would take that. The entry points import the project's own first.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])
NAMES = ("sim", "policies")


def own_packages() -> None:
    """Import ``sim`` and ``policies`` from beside this package, whatever else the path has under these names."""
    sys.path.insert(0, ROOT)
    try:
        for name in NAMES:
            importlib.import_module(name)
    finally:
        sys.path.remove(ROOT)


def main() -> None:
    """Run ``simrun``."""
    own_packages()
    from sim.cli import main as simrun

    simrun()


def calibrate() -> None:
    """Run ``gpu-calibrate``."""
    own_packages()
    from gpu_calibrate.cli import main as gpu_calibrate

    gpu_calibrate()
