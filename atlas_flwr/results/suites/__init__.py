"""What a suite left: its rows, paired statistics, tables in several formats, plots."""
