"""Federated learning, small and checked: what the notebooks of this collection share."""
