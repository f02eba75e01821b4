"""Decisions about a machine, as functions of plain values."""
