"""The maths of aggregation: pure functions over named NumPy tensors."""
