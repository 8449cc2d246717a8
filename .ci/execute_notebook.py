"""Executes notebooks from top to bottom, each in its own folder; the first error ends it. Nothing is written back.

Usage: python .ci/execute_notebook.py NOTEBOOK...
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TIMEOUT_S = 300


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        start = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(
            notebook, timeout=TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
        ).execute()
        print(f"{path}: {len(notebook.cells)} cells in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
