"""The 58 checks of the service's and the trainer's guarantees, and the commands that run them."""
