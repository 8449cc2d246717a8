"""The same decisions, many steps at a time."""
