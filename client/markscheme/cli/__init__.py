"""The `markscheme` command; the server and the trainer add theirs through entry points."""

from markscheme.cli.app import main

__all__ = ["main"]
