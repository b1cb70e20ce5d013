"""Federated fine-tuning of transformers, on Flower.

What a script needs: an experiment's config, the values that cross rooms, the errors, and streams of
random numbers. Runs are started by ``atlas run`` or ``flwr run``.
"""

from atlas_flwr.config.load import load_config, parse_config
from atlas_flwr.config.schema import Config
from atlas_flwr.errors import (
    AtlasError,
    ConfigError,
    DataError,
    ModelError,
    ResultError,
    RunFailed,
    UserError,
)
from atlas_flwr.seeding import rng_for, seed_for
from atlas_flwr.types import Adapter, Job, LoraFactors, ModelParts, Report, Update

__all__ = [
    "Adapter",
    "AtlasError",
    "Config",
    "ConfigError",
    "DataError",
    "Job",
    "LoraFactors",
    "ModelError",
    "ModelParts",
    "Report",
    "ResultError",
    "RunFailed",
    "Update",
    "UserError",
    "load_config",
    "parse_config",
    "rng_for",
    "seed_for",
]
