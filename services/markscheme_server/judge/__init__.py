"""Judges that ask a model: prompts, calls, replies, failures and what they cost."""
