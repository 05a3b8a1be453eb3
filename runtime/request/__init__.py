"""A request: the settings a user gives, checked and normalised before anything runs."""
