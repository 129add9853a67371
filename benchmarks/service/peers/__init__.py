"""Drivers of other tools, each run in the tool's own virtual environment."""
