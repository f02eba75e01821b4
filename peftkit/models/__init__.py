"""Bases: found, made, loaded, quantised, adapted and exported."""
