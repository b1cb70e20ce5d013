"""Provenance: commit, versions and machine, and nobody's name."""

import json
import platform
from pathlib import Path

import pytest

from atlas_flwr.results.provenance import provenance


def test_it_names_versions_and_machine_but_nobody(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/somebody"))
    got = provenance(["atlas", "run", "/home/somebody/x.toml"], 3)
    assert got["argv"] == ["atlas", "run", "~/x.toml"]
    assert got["seed"] == 3
    assert {"flwr", "torch", "transformers", "peft", "ray", "numpy"} <= set(got["versions"])
    assert got["versions"]["numpy"] is not None
    assert got["machine"]["cpu_count"] >= 1
    assert got["machine"]["ram_gb"] > 0
    text = json.dumps(got, allow_nan=False)
    assert "somebody" not in text
    assert "node" not in got["machine"]
    assert len(platform.node()) < 4 or platform.node() not in text


def test_a_package_outside_a_checkout_has_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr("atlas_flwr.__file__", str(tmp_path / "atlas_flwr" / "__init__.py"))
    got = provenance([], 0)
    assert got["commit"] is None
    assert got["dirty"] is None


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        (["x", "--token", "abc123", "--insecure"], ["x", "--token", "***", "--insecure"]),
        (["x", "--insecure", "--token=abc123"], ["x", "--insecure", "--token=***"]),
        (["x", "--token"], ["x", "--token"]),
        (["x", "--token-file", "abc"], ["x", "--token-file", "abc"]),
    ],
)
def test_the_token_flower_gives_its_processes_is_not_kept(typed, kept):
    assert provenance(typed, 0)["argv"] == kept
