"""Reading, tokenising and packing text."""
