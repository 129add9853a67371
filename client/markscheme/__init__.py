"""Markscheme's SDK: rubrics and rewards from a Markscheme service."""

from markscheme.client import AsyncClient, Client
from markscheme.errors import MarkschemeError

__all__ = ["AsyncClient", "Client", "MarkschemeError"]
