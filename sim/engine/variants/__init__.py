"""Variants and baselines of the reference: windows, drafts, ranks in lockstep."""
