"""Benchmarks of small interventions, of two composed ones, and of gates."""
