"""Solvers: one file per sampler, each its textbook step over a schedule."""
