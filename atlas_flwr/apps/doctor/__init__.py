"""`atlas doctor`: one file a kind of check."""
