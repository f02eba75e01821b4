"""Adapters as files: what is in them, read without torch."""
