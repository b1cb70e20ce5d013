"""Typed, frozen configuration that fails at load."""
