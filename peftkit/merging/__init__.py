"""An adapter and its base made into one model, proven right."""
