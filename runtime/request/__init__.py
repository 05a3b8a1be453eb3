"""A request: the user's settings, checked and completed before anything runs."""
