"""Where clients run: Flower's Ray engine, or this process; and what they keep on disk."""
