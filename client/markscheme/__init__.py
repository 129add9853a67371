"""Markscheme's SDK."""
