"""`markscheme demo`: train a small model on rubric rewards, on a laptop's processor."""
