"""What benchmarks share: results and who made them, prompts, curves, comparisons of methods, a second model."""
