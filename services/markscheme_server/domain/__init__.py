"""The domain: pure values and functions, without I/O or frameworks."""
