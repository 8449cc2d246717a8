"""The version, as `pyproject.toml` has it: in a file of its own, because ``sim`` itself leads to every module."""

__version__ = "0.1.0"
