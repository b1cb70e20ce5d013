"""One client's local training and evaluation, on whatever device it has."""
