"""Markscheme inside other trainers. Each module needs only the SDK; none imports its trainer."""
