"""Limits on judge calls and requests, shared between processes through Redis."""
