"""Comparing two things after an operation."""
