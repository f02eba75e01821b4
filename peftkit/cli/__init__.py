"""The command line: a file for each command, or for a few small ones of one subject."""

from peftkit.cli.app import main

__all__ = ["main"]
