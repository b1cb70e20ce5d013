"""One small file per method; ``registry.STRATEGIES`` names them all."""
