"""Flower ``NumPyClient`` subclasses: what one client does with a job."""
