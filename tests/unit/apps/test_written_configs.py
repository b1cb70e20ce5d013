"""An experiment that is written down is the same experiment when it is read again."""

from pathlib import Path

import pytest

from atlas_flwr.apps.prepare import check_names, resolve
from atlas_flwr.config.load import dump_config, load_config, parse_config
from strategies.registry import STRATEGIES


@pytest.mark.parametrize("tasks", [["sst2"], ["sst2", "cola"]])
@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_written_is_read_as_it_was(name: str, tasks: list[str], tmp_path: Path) -> None:
    """A suite hands its runs to other processes as files, before anything is spelled out."""
    file = tmp_path / "written.toml"
    plain = parse_config({"data": {"tasks": tasks}, "strategy": {"name": name}})
    for config in (plain, resolve(plain)):
        file.write_text(dump_config(config))
        again = load_config(file)
        check_names(again)
        assert resolve(again) == resolve(plain).model_copy(update={"train": again.train})
