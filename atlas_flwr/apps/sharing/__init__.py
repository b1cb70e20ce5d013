"""A trained model taken out of a run: exported, asked, pushed to the hub."""
