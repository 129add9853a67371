"""The 58 checks of what the service and the trainer promise, each with the command that shows it."""
