"""The service under load, and other tools under the same load."""
