"""A suite of runs: its file, its folder, the runs in this process or in children, its view."""
