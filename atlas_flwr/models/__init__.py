"""Pretrained models, their LoRA adapters and heads, and the tensors that travel."""
