"""Tests of the shipped containers with a real Docker engine."""
