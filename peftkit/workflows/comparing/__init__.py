"""A comparison: the same recipe in several ways and with several seeds, and the table that comes of it."""
