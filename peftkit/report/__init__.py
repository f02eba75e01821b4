"""The results of runs and comparisons, for people: one HTML page, and curves in the terminal."""
