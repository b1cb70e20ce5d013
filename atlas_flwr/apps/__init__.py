"""ServerApp, ClientApp and command line: the only place that knows strategies and clients."""
