"""Limits on judge calls and requests, shared between the processes of a deployment through Redis."""
