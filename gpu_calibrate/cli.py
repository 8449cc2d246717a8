"""``gpu-calibrate``: the command line. Results go to standard output, everything else to standard error."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
def cli() -> None:
    """Measure this machine's GPU, and write what it takes to predict an engine's steps to one file."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``gpu-calibrate``. Always ends with SystemExit."""
    cli.main(list(sys.argv[1:] if argv is None else argv), prog_name="gpu-calibrate")


if __name__ == "__main__":
    main()
