"""Training through the Transformers Trainer."""
