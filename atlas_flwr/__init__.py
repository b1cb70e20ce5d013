"""Federated fine-tuning of transformers, on Flower."""
