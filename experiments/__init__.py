"""Shipped experiments: one TOML each."""
