"""Noise schedules: from a scheduler config to the sigmas and timesteps of one request."""
