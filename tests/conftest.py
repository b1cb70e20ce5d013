"""Every test: no hub, one thread, and a token cache of its own session's."""

import os
from pathlib import Path

import pytest

# Read by the Hugging Face libraries and by OpenMP when they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session", autouse=True)
def token_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep tokenised rows in the session's folder; programs that tests start inherit it."""
    folder = tmp_path_factory.mktemp("atlas-cache")
    os.environ["ATLAS_CACHE"] = str(folder)
    return folder
