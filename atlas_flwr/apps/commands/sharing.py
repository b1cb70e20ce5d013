"""Commands that take a trained model out of a run directory: export, predict."""
