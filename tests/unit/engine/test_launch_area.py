"""The private area of a Ray run: ports, environment, Flower's config, the app folder."""

import os
import socket
import stat
import sys
import tomllib
from pathlib import Path

import pytest
from flwr.cli.config_utils import load_and_validate
from flwr.common.config import parse_config_args
from flwr.supercore.utils import simulation_config_from_json

from atlas_flwr.engine.launch_area import (
    CONNECTION,
    AppRefs,
    environment_for,
    federation_words,
    free_port,
    private_area,
    write_app,
    write_connection,
)


def test_a_free_port_can_be_bound():
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        assert free_port() != port


def test_the_area_is_private_empty_short_and_gone_afterwards():
    with private_area() as area:
        root = area.root
        assert stat.S_IMODE(root.stat().st_mode) == 0o700
        assert list(area.cwd.iterdir()) == []
        socket_path = f"{root}/ray/session_2026-11-22_22-41-08_123456_1234567/sockets/plasma_store"
        assert len(socket_path) <= 107
    assert not root.exists()


def test_a_deep_temporary_folder_is_left_for_a_short_one(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 80)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with private_area() as area:
        assert area.root.parent == Path("/tmp")


def test_two_areas_share_nothing():
    with private_area() as one, private_area() as two:
        assert one.root != two.root


def test_the_area_goes_even_when_the_run_raises():
    with pytest.raises(ZeroDivisionError), private_area() as area:
        1 / 0  # noqa: B018
    assert not area.root.exists()


def environment(base: dict[str, str], apps: AppRefs | None = None) -> dict[str, str]:
    with private_area() as area:
        env = environment_for(area, 3, apps or AppRefs(), base)
        assert env["FLWR_HOME"] == str(area.home)
        assert env["RAY_TMPDIR"] == str(area.root)
        return env


def test_the_users_settings_pass_and_foreign_runtimes_do_not():
    env = environment(
        {
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "2",
            "PATH": "/usr/bin",
            "FLWR_HOME": "/elsewhere",
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": "1",
            "RAY_ADDRESS": "10.0.0.1:6379",
            "PYTHONPATH": "/another/checkout",
            "FORCE_COLOR": "1",  # Jupyter's kernels set these two
            "CLICOLOR_FORCE": "1",
        }
    )
    assert not {"FORCE_COLOR", "CLICOLOR_FORCE"} & set(env)
    assert env["HF_HUB_OFFLINE"] == "1"
    assert env["CUDA_VISIBLE_DEVICES"] == "2"
    assert "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT" not in env
    assert env["RAY_ADDRESS"] == "local"
    assert "/another/checkout" not in env.get("PYTHONPATH", "")
    assert env["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]
    assert "HF_HUB_OFFLINE" not in environment({})


def test_threads_and_quiet_settings_are_set():
    env = environment({"OMP_NUM_THREADS": "16"})
    assert env["OMP_NUM_THREADS"] == env["MKL_NUM_THREADS"] == "3"
    assert env["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert env["FLWR_TELEMETRY_ENABLED"] == env["RAY_USAGE_STATS_ENABLED"] == "0"


def test_the_apps_folder_is_importable(tmp_path):
    env = environment({}, AppRefs("a:app", "b:app", tmp_path))
    assert env["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path.resolve())


@pytest.mark.parametrize(
    ("base", "value"),
    [
        ({}, "127.0.0.1,localhost"),
        ({"no_proxy": "corp"}, "corp,127.0.0.1,localhost"),
        ({"NO_PROXY": "corp"}, "corp,127.0.0.1,localhost"),
    ],
)
def test_this_machine_is_never_asked_through_a_proxy(base, value):
    env = environment({"https_proxy": "http://proxy:1", **base})
    assert env["no_proxy"] == env["NO_PROXY"] == value
    assert env["https_proxy"] == "http://proxy:1"


def test_the_config_names_one_superlink():
    with private_area() as area:
        write_connection(area, 1234)
        config = tomllib.loads((area.home / "config.toml").read_text())
    link = {"address": "127.0.0.1:1234", "insecure": True}
    assert config == {"superlink": {"default": CONNECTION, CONNECTION: link}}


def test_flower_accepts_the_app_folder_and_any_path(tmp_path, monkeypatch):
    (tmp_path / "toy.py").write_text("app = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    odd = tmp_path / 'it\'s "odd" = ü'
    with private_area() as area:
        write_app(area, AppRefs("toy:app", "toy:app"), odd, odd / "out")
        config, warnings = load_and_validate(area.app / "pyproject.toml")
        assert sorted(path.name for path in area.app.iterdir()) == ["pyproject.toml"]
    settings = {"config": str(odd), "out": str(odd / "out"), "overrides": "", "resume": ""}
    assert config["tool"]["flwr"]["app"]["config"] == settings
    assert all("description" in line or "license" in line.lower() for line in warnings)


def test_flower_reads_the_federation_words():
    words = parse_config_args([federation_words(7, 3, 2, 0.25)])
    config = simulation_config_from_json({k.replace("-", "_"): v for k, v in words.items()})
    assert config.num_supernodes == 7
    assert config.client_resources_num_cpus == 2
    assert config.client_resources_num_gpus == 0.25
    assert config.init_args_num_cpus == 6
