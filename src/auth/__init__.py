"""Doors under the names that the runbooks use."""
