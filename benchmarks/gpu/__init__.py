"""What a GPU's step takes, and whether its gradients are right."""
