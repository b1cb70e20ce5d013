"""Trackers, one file each; every one runs in a process of its own (``__main__``)."""
