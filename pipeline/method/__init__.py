"""Noise-robust losses and the per-sample state they keep."""
