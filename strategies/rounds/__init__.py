"""The rounds: one Flower Strategy that drives any method, and the firewall before it."""
