"""The results room: what a run measured, written, read back and drawn."""
