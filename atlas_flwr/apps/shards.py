"""`atlas shards`: each client's rows as a folder, as the simulation deals them."""

from __future__ import annotations

from pathlib import Path

from atlas_flwr.config.schema import Config
from atlas_flwr.data.folder import write_shard
from atlas_flwr.data.load import load_rows
from clients.site import deal, task_specs


def client_folder(out: Path, partition: int) -> Path:
    """Return where a partition's shard lies below the folder of all."""
    return out / f"client-{partition}"


def write_shards(config: Config, out: Path, full: bool = True) -> list[Path]:
    """Write ``client-<i>/{train,validation}.parquet`` and ``shard.json`` for every partition.

    The rows are those that the simulation deals to the partition, in its order, so that a deployed
    run computes what the simulated one does.

    Args:
        config: The experiment.
        out: The folder of all; made if it is not there.
        full: Also write each task's whole evaluation set, ``full.parquet``, into its clients'
            folders: the last evaluation then covers it, as in the simulation.

    Returns:
        The clients' folders, by partition.

    Raises:
        DataError: The data can't be had, a shard is there already, or can't be written.
    """
    folders: dict[int, Path] = {}
    for name, spec in task_specs(config).items():
        shards = deal(config, name)
        rows = load_rows(spec, config.data.root, config.run.seed)
        for partition, shard in shards.items():
            folders[partition] = client_folder(out, partition)
            write_shard(folders[partition], spec, rows, shard, partition, full)
    return [folders[partition] for partition in sorted(folders)]
