"""Handlers as a user writes them, for the tests."""
