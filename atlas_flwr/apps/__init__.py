"""The ServerApp, the ClientApp and the command line: the only place that knows strategies and clients."""
