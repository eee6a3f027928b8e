"""Shared parts of benchmarks: results and who made them, prompts, curves, comparisons of methods, a second model."""
