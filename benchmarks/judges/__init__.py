"""The service against real judge servers."""
