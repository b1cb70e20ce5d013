"""Which clients belong together, by their fingerprints; one cluster is a possible answer."""
