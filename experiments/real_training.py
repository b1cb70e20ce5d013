"""The Colab guide's functions, over the same run that ``atlas run --resume auto`` makes.

Two ways to import it, the second one as in the guide, with this folder on ``sys.path``::

    from experiments.real_training import run_quick_experiment
    from real_training import run_quick_experiment

Every call leaves a run directory (config, rounds, rows of clients, adapters, report), and every
client trains a real transformer on real rows through Flower. A client that runs out of memory
halves its batches by itself, and says so. The environment variable ``ATLAS_SET``
(``a.b=value;c.d=value``) lies on top of every config made here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atlas_flwr.config.schema import Config
from atlas_flwr.errors import ConfigError
from atlas_flwr.results.store import RunResult, to_json
from atlas_flwr.results.writing import atomic_write
from experiments.guided import (
    SIZES,
    Names,
    Ranks,
    Size,
    device_of,
    experiment,
    fill,
    per_round,
    run_or_go_on,
    say_device,
    sections_of,
    size_named,
)

__all__ = [
    "SIZES",
    "LoRAFederatedTrainer",
    "RealFederatedTrainer",
    "Size",
    "run_directory",
    "run_quick_experiment",
]


def run_quick_experiment(  # noqa: PLR0913 - the guide's names, and what its experiments need
    experiment_name: str,
    model_name: str = "distilbert-base-uncased",
    task_name: Names = "sst2",
    num_rounds: int = 5,
    num_clients: int = 5,
    use_lora: bool = False,
    lora_rank: Ranks = 8,
    *,
    size: str | None = None,
    max_samples: int | None = None,
    batch_size: int | None = None,
    local_epochs: int = 1,
    strategy: str | None = None,
    options: Mapping[str, Any] | None = None,
    device: str | None = None,
    engine: str | None = None,
    out: str | Path = "results",
    mirror: str | Path | None = None,
    stop_after: str | None = None,
    resume: bool = True,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Run one experiment and write ``<out>/<experiment_name>.json``.

    The run directory is ``<out>/runs/<experiment_name>``. Calling it again goes on with a run
    that was interrupted and reads one that is finished; the same name with other arguments is
    refused. The learning rate is 5e-5 for full fine-tuning and 1e-3 for LoRA
    (``overrides=["train.learning-rate=3e-5"]`` sets another).

    Args:
        experiment_name: Letters, digits, ``.``, ``_`` and ``-``.
        model_name: A named model, a hub id or a folder.
        task_name: One task, or several, dealt to the clients in contiguous blocks.
        num_rounds: Rounds.
        num_clients: Clients; all take part in every round.
        use_lora: LoRA instead of full fine-tuning.
        lora_rank: One rank, or a list dealt to the clients in turn.
        size: "default", "fast" or "very fast": its rounds and clients take the place of
            ``num_rounds`` and ``num_clients``; its rows and batch are defaults.
        max_samples: Training rows of each client; by default 300, or what ``size`` says.
        batch_size: By default 8, with LoRA 16, or what ``size`` says.
        local_epochs: Passes over its rows in each round.
        strategy: A name that ``atlas list`` prints; by default ``fedavg``, with LoRA ``fedit``,
            with several ranks ``flexlora``.
        options: The strategy's own options.
        device: "cuda", "cpu", or None for the GPU where there is one.
        engine: "ray" (Flower's simulation engine, the default) or "inline" (this process).
        out: Folder of the JSON file and of ``runs/``.
        mirror: A second folder, such as a mounted drive, that gets a copy of every round; a run
            directory that was lost with its session is fetched from it.
        stop_after: Time such as "3h30m" after which the run stops between two rounds.
        resume: Whether a run of this name may be gone on with; else it is refused.
        overrides: ``section.key=value`` items for everything else.

    Returns:
        ``experiment_name, model_name, task_name, num_rounds, num_clients, use_lora, lora_rank,
        total_time_minutes, final_accuracy, final_loss, round_results``. Final numbers are of the
        whole evaluation sets, those of ``round_results`` of the clients' own slices; several tasks
        are one name joined by "+"; ``lora_rank`` is None without LoRA. Memory (MB = 10⁶ bytes) is
        the highest peak a client measured, bytes are those of the messages, up and down.

    Raises:
        UserError: An argument is wrong, or the name belongs to another experiment.
        RunFailed: The run failed; the same call goes on from its last round.
        RunStopped: It was stopped; the same call goes on.
    """
    chosen = size_named(size) if size else Size(num_rounds, num_clients, 300)
    ranks = lora_rank if use_lora else None
    sections = sections_of(experiment_name, model_name, task_name, chosen.clients, ranks)
    sections["run"] |= {"rounds": chosen.rounds, "stop-after": stop_after}
    sections["run"]["mirror"] = str(mirror) if mirror else None
    samples = chosen.samples if max_samples is None else max_samples
    sections["data"]["samples-per-client"] = samples
    batch = (chosen.batch or (16 if use_lora else 8)) if batch_size is None else batch_size
    fill(sections, batch, local_epochs, engine, device, strategy, options)
    config = experiment(sections, str(run_directory(experiment_name, out)), overrides)
    say_device(device_of(config))
    result = _result(experiment_name, config, run_or_go_on(config, resume=resume))
    file = Path(out).expanduser() / f"{experiment_name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, to_json(result, indent=2) + "\n")
    return result


def run_directory(experiment_name: str, out: str | Path = "results") -> Path:
    """Return where `run_quick_experiment` keeps a run of that name."""
    return Path(out).expanduser() / "runs" / experiment_name


class RealFederatedTrainer:
    """Full fine-tuning across clients: each trains the whole model on rows of its own.

    Arguments are checked at once, ``[INIT] Using device: …`` is printed, and the first model or
    row is read when training begins.

    Args:
        model_name: A named model, a hub id or a folder.
        task_name: One task, or several, dealt to the clients in contiguous blocks.
        num_clients: Clients.
        local_epochs: Passes over its rows in each round.
        batch_size: Rows of a batch; halved by itself when memory runs out.
        max_samples: Training rows of each client.
        device: "cuda", "cpu", or None for the GPU where there is one.
        strategy: A name that ``atlas list`` prints.
        options: The strategy's own options.
        engine: "ray" (Flower's simulation engine, the default) or "inline" (this process).
        out: The run directory, which a second call goes on with; by default a new one for each
            call, ``runs/<model>-<task>-<UTC time>``.
        overrides: ``section.key=value`` items for everything else.

    Attributes:
        device: ``"cuda"`` or ``"cpu"``, where the clients train.
        run_directory: Where the last run lies; None before the first.

    Raises:
        UserError: An argument is wrong, or CUDA was asked for and is not there.
    """

    _ranks: Ranks | None = None

    def __init__(  # noqa: PLR0913 - the guide's names
        self,
        model_name: str,
        task_name: Names,
        num_clients: int = 10,
        local_epochs: int = 1,
        batch_size: int = 8,
        max_samples: int = 500,
        device: str | None = None,
        *,
        strategy: str | None = None,
        options: Mapping[str, Any] | None = None,
        engine: str | None = None,
        out: str | Path | None = None,
        overrides: Sequence[str] = (),
    ) -> None:
        how = "full" if self._ranks is None else "lora"
        words = [Path(model_name).name, *([task_name] if isinstance(task_name, str) else task_name)]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join([*words, how])).lstrip("-._")[:64]
        name = name.rstrip("-._")  # last: what is cut off may leave a dot at the end
        self._sections = sections_of(name, model_name, task_name, num_clients, self._ranks)
        self._sections["data"]["samples-per-client"] = max_samples
        fill(self._sections, batch_size, local_epochs, engine, device, strategy, options)
        self._clients, self._out, self._overrides = num_clients, out, tuple(overrides)
        self.run_directory: Path | None = None
        self.device = device_of(self._config())
        say_device(self.device)

    def run_federated_training(
        self, num_rounds: int = 10, clients_per_round: int = 10, learning_rate: float = 2e-5
    ) -> list[dict[str, Any]]:
        """Train and return one dict a round.

        Args:
            num_rounds: Rounds.
            clients_per_round: Clients drawn for each round; more than there are means all.
            learning_rate: AdamW's rate.

        Returns:
            ``round, accuracy, loss, train_loss, time_seconds, memory_mb, communication_mb`` of
            each round; what was not measured is None.

        Raises:
            UserError: An argument is wrong.
            RunFailed: The run failed; ``atlas resume`` goes on with its directory.
            RunStopped: It was stopped; so does it then.
        """
        return self._train(num_rounds, clients_per_round, learning_rate)

    def _train(
        self, num_rounds: int, clients_per_round: int, learning_rate: float
    ) -> list[dict[str, Any]]:
        if clients_per_round < 1:
            raise ConfigError(f"clients_per_round: {clients_per_round}; at least one is needed")
        run = {"rounds": num_rounds, "fraction": min(1.0, clients_per_round / self._clients)}
        config = self._config(run=run, train={"learning-rate": learning_rate})
        self.run_directory = Path(str(config.run.out))
        return per_round(run_or_go_on(config))

    def _config(self, **sections: Mapping[str, Any]) -> Config:
        tree = {name: {**told, **sections.get(name, {})} for name, told in self._sections.items()}
        return experiment(tree, str(self._out) if self._out else None, self._overrides)


class LoRAFederatedTrainer(RealFederatedTrainer):
    """LoRA across clients: each trains an adapter and the head; the backbone stays as it was.

    Args:
        rank: One rank, or a list dealt to the clients in turn.
        batch_size: Rows of a batch; 16 by default.
        **same: As for `RealFederatedTrainer`; ``model_name`` and ``task_name`` are required. The
            strategy is ``fedit`` by default, with several ranks ``flexlora``.

    Raises:
        UserError: An argument is wrong, or CUDA was asked for and is not there.
    """

    def __init__(self, rank: Ranks = 8, *, batch_size: int = 16, **same: Any) -> None:
        self._ranks = rank
        super().__init__(batch_size=batch_size, **same)

    def run_federated_training(
        self,
        num_rounds: int = 10,
        clients_per_round: int = 10,
        learning_rate: float | None = None,
    ) -> list[dict[str, Any]]:
        """Train and return one dict a round, as `RealFederatedTrainer.run_federated_training`.

        Args:
            num_rounds: Rounds.
            clients_per_round: Clients drawn for each round; more than there are means all.
            learning_rate: AdamW's rate; None: 1e-3. The 2e-5 that full fine-tuning has moves an
                adapter, which starts at zero, next to nowhere in ten rounds.
        """
        rate = 1e-3 if learning_rate is None else learning_rate
        return self._train(num_rounds, clients_per_round, rate)


def _result(name: str, config: Config, run: RunResult) -> dict[str, Any]:
    """Return what the guide's JSON files hold: what was run, after every override."""
    use_lora = config.model.adaptation == "lora"
    ranks = config.lora.rank
    final = run.summary["final"]
    return {
        "experiment_name": name,
        "model_name": config.model.name,
        "task_name": "+".join(config.data.tasks),
        "num_rounds": config.run.rounds,
        "num_clients": config.run.clients,
        "use_lora": use_lora,
        "lora_rank": (ranks[0] if len(ranks) == 1 else list(ranks)) if use_lora else None,
        "total_time_minutes": run.summary["seconds"] / 60,
        "final_accuracy": final["accuracy"],
        "final_loss": final["loss"],
        "round_results": per_round(run),
    }
