"""The run folder: its layout, manifest and metrics."""
