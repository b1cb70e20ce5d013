"""What a client says about its data in 8 KB, and how far two clients are apart."""
