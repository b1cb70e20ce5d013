"""The notebook's session: its time, its GPU, its zip."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from atlas_flwr.errors import ConfigError, ResultError
from experiments.colab import GpuLog, Session, download, progress, zip_results
from experiments.colab.results import mean_of


def test_a_session_counts_down_and_never_says_none() -> None:
    assert Session("2h").left() in ("7200s", "7199s")
    short = Session("1s")
    short._until -= 10
    assert short.left() == "1s"
    with pytest.raises(ConfigError, match=r"session: .*got 'soon'"):
        Session("soon")


def test_the_gpus_log_is_told_in_one_line(tmp_path: Path) -> None:
    log = GpuLog(tmp_path / "gpu.csv")
    assert log.summary() == "no GPU: the clients trained on the CPU"
    lines = ["Tesla T4, 90, 5000, 15360", "Tesla T4, 30, 6000, 15360", "Tesla T4, [N/A], 1, 2"]
    log.path.write_text("\n".join(lines) + "\nTesla T4, 1")  # the last one was cut
    assert log.summary() == (
        "Tesla T4: up to 90 % busy, 60 % on average over 2 s; up to 6,000 of 15360 MiB used"
    )


def test_without_a_gpu_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with GpuLog(tmp_path / "results" / "gpu.csv") as log:
        assert log.summary().startswith("no GPU")
    assert not log.path.exists()


def test_the_log_of_a_gpu_ends_with_its_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Tesla T4, 77, 4000, 15360'\nexec /bin/sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with GpuLog(tmp_path / "gpu.csv") as log:
        process = log._process
        while not log.path.stat().st_size:
            assert process.poll() is None
    assert process.poll() is not None
    assert log.summary().startswith("Tesla T4: up to 77 % busy")


def test_the_zip_has_what_is_read_and_not_what_is_resumed(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="no such folder"):
        zip_results(tmp_path / "results")
    kept = ("exp4_atlas.json", "memory.png", "runs/exp4_atlas/report.html")
    kept += ("runs/exp4_atlas/adapters/client-0/adapter_model.safetensors", "runs/e/rounds.jsonl")
    left = ("checkpoints/round-1/state.json", "vault/0.safetensors", "models/global/config.json")
    for name in (*kept, *(f"runs/exp4_atlas/{name}" for name in left)):
        path = tmp_path / "results" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    path = zip_results(tmp_path / "results")
    assert path == tmp_path / "results.zip"
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == sorted(f"results/{name}" for name in kept)
    zip_results(tmp_path / "results")  # a second one replaces it
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["results.zip"]


def test_the_folder_one_stands_in_can_be_zipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "results")
    assert zip_results(".") == tmp_path / "results.zip"


def test_what_an_earlier_session_saw_of_a_gpu_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "gpu.csv").write_text("Tesla T4, 77, 4000, 15360\n")
    with GpuLog(tmp_path / "gpu.csv") as log:
        assert log.summary().startswith("Tesla T4")
    assert log.path.exists()


def test_outside_colab_a_download_says_where_the_file_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download(tmp_path / "results.zip")
    assert str(tmp_path / "results.zip") in capsys.readouterr().out


def test_progress_before_anything_began(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress(out=tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(line.endswith("not begun") for line in lines)


def test_a_mean_leaves_out_what_was_not_measured() -> None:
    assert mean_of([1.0, None, 3.0, float("nan")]) == 2.0
    assert mean_of([None]) is None
