"""The trainer's methods, and its step beside TRL's."""
