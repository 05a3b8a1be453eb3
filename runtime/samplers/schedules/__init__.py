"""Noise schedules: from a scheduler config to the timesteps and sigmas of one request."""
