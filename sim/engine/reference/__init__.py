"""The engine as vLLM has it, step by step: read this first."""
