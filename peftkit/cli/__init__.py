"""The command line: one file for each command."""

from peftkit.cli.app import main

__all__ = ["main"]
