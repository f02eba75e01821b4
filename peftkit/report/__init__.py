"""What runs and comparisons came to, for people: one HTML page, and curves in the terminal."""
