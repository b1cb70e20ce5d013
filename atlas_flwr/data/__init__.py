"""Tasks, their rows, and how the rows are dealt to clients."""
