"""The recipe: the network in plain PyTorch, the family, the stages, training, export and evaluation."""
