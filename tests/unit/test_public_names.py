"""The public surface is what it says, sorted, and light to import."""

from __future__ import annotations

import subprocess
import sys

import atlas_flwr


def test_all_is_sorted_and_true() -> None:
    assert atlas_flwr.__all__ == sorted(atlas_flwr.__all__)
    for name in atlas_flwr.__all__:
        assert hasattr(atlas_flwr, name)


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ("torch", "flwr", "transformers", "ray", "pandas")
    code = f"import atlas_flwr, sys; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
