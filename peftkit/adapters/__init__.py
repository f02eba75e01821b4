"""Adapters on the disk and on their base: what is in them, whether they are sound, and what is made of them."""
