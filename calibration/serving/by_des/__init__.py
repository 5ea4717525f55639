"""Measured serving points played through the discrete-event model, as their benchmarks were."""
