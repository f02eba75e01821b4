"""Whole jobs, from a recipe to a finished folder."""
