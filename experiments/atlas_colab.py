# ---
# jupyter:
#   accelerator: GPU
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # ATLAS: real federated fine-tuning in a Colab session
#
# Five experiments train a real transformer across several clients through
# [Flower](https://flower.ai), each client on rows of its own:
#
# | | experiment | what is trained and shared |
# |---|---|---|
# | 1 | Standard FL | the whole model; FedAvg |
# | 2 | LoRA FL | adapters of rank 8; FedIT, the mean of the factors |
# | 3 | Hetero LoRA | adapters of ranks 4, 8 and 16; FlexLoRA, the mean product cut to each rank |
# | 4 | ATLAS | clusters found from fingerprints, ranks under budgets, a graph step |
# | 5 | Multi-task | one mean product for each task, the clients' tasks told |
#
# All five have **the same tasks, clients, rows, rounds and seed**, so their curves share an axis.
# Run the cells from top to bottom. If the session dies, open the notebook again and run it again:
# what is finished is read, what was interrupted goes on after its last round.

# %% [markdown]
# ## 1. Is there a GPU?
# In Colab: *Runtime → Change runtime type → T4 GPU*, before anything else.

# %%
import shutil
import subprocess

if shutil.which("nvidia-smi"):
    asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    print(f"GPU Name: {(found.stdout or found.stderr).strip()}")
else:
    print("No GPU. Choose Runtime > Change runtime type > T4 GPU and start again from here.")
    print("It runs on a CPU too, many times slower: then set SIZE to 'very fast' below.")

# %% [markdown]
# ## 2. Google Drive (optional)
# With `USE_DRIVE = True` every round is copied to your Drive, and a lost session loses one round
# at most. Full fine-tuning copies the whole model each round (DistilBERT: 0.3 GB; three are kept).

# %%
from importlib.util import find_spec
from pathlib import Path

USE_DRIVE = False

DRIVE = None
if USE_DRIVE and find_spec("google") is not None and find_spec("google.colab") is not None:
    from google.colab import drive

    drive.mount("/content/drive")
    DRIVE = Path("/content/drive/MyDrive")
print(f"Drive: {DRIVE or 'not used'}")

# %% [markdown]
# ## 3. Install
# Upload `ATLAS.zip` (`zip -r ATLAS.zip ATLAS/` on your machine), put it on your Drive, or name a
# folder, a zip or `git+https://…` in `SOURCE`. Colab's own torch stays: pip is told to keep it.

# %%
import importlib
import os
import sys
import zipfile
from importlib.metadata import version

SOURCE = ""


def torch_version():
    return version("torch") if find_spec("torch") else None


def find_source():
    """The folder, zip or address to install; None where nothing was uploaded."""
    if SOURCE.startswith("git+"):
        return SOURCE
    homes = [Path.cwd(), Path("/content"), *([DRIVE] if DRIVE else [])]
    names = [Path(SOURCE)] if SOURCE else [h / n for h in homes for n in ("ATLAS.zip", "ATLAS")]
    place = next((path for path in names if path.exists()), None)
    if place is not None and place.suffix == ".zip":
        shutil.rmtree("ATLAS-unzipped", ignore_errors=True)
        with zipfile.ZipFile(place) as archive:
            archive.extractall("ATLAS-unzipped")
        place = Path("ATLAS-unzipped")
    if place is None:
        return None
    files = [*place.glob("pyproject.toml"), *place.glob("*/pyproject.toml")]
    return next((str(f.parent) for f in files if "atlas-flwr" in f.read_text()), None)


if Path("atlas_colab.py").exists():
    os.chdir("..")  # opened inside the code: results belong beside it
before = torch_version()
source = find_source()
if source:
    keep = Path("keep-torch.txt")
    keep.write_text(f"torch=={before}\n" if before else "")
    words = ["install", "--quiet", "--constraint", str(keep), source]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    importlib.invalidate_caches()
if find_spec("atlas_flwr") is None:
    raise ImportError("upload ATLAS.zip beside this notebook, and run this cell again")
if torch_version() != before and before:
    raise RuntimeError(f"torch was {before} and is {torch_version()}: Runtime > Restart session")
print(f"atlas-flwr from {source or 'what is installed'}; torch {before} kept")

# %% [markdown]
# ## 4. Settings
# | size | rounds | clients | training rows each |
# |---|---|---|---|
# | `default` | 5 | 5 | 300 |
# | `fast` | 3 | 3 | 200 |
# | `very fast` | 2 | 3 | 100 |
#
# Two tasks that differ in kind, dealt in blocks: of five clients three have `sst2` (sentiment) and
# two `qnli` (does the sentence answer the question?). ATLAS is not told which. For four tasks use
# eight clients, or some task has nobody to share with:
# `TASKS = ["sst2", "mrpc", "cola", "qnli"]`, `CLIENTS = 8`.
# One batch size for all, else full fine-tuning would take more steps than LoRA.

# %%
import experiments

sys.path.append(str(Path(experiments.__file__).parent))

from real_training import SIZES, run_quick_experiment

from experiments.colab import (
    GpuLog,
    Session,
    atlas_found,
    download,
    evidence,
    plain_errors,
    progress,
    read_done,
    write_plots,
    write_summary,
    zip_results,
)

SIZE = "default"  # "default", "fast" or "very fast"
TASKS = ["sst2", "qnli"]
CLIENTS = SIZES[SIZE].clients
RANKS = [4, 8, 16]  # dealt to the clients in turn: small, middling and large devices
SESSION = "3h30m"  # runs stop between two rounds before this has passed

plain_errors()
session = Session(SESSION)
SHARED = {
    "model_name": "distilbert-base-uncased",
    "task_name": TASKS,
    "num_rounds": SIZES[SIZE].rounds,
    "num_clients": CLIENTS,
    "max_samples": SIZES[SIZE].samples,
    "batch_size": 16,
    "mirror": DRIVE / "atlas-colab" if DRIVE else None,
}
progress()

# %% [markdown]
# ## 5. The experiments
# ### Experiment 1: Standard FL
# Every client trains the whole model; the server averages the weights.

# %%
with GpuLog():
    exp1_results = run_quick_experiment(
        experiment_name="exp1_standard_fl", use_lora=False, stop_after=session.left(), **SHARED
    )

# %% [markdown]
# ### Experiment 2: LoRA FL
# The model stays as it is; every client trains an adapter of rank 8, and the factors are averaged.

# %%
with GpuLog():
    exp2_results = run_quick_experiment(
        experiment_name="exp2_lora_fl",
        use_lora=True,
        lora_rank=8,
        stop_after=session.left(),
        **SHARED,
    )

# %% [markdown]
# ### Experiment 3: Hetero LoRA
# Clients have ranks 4, 8 and 16. Their products are averaged exactly and cut to each rank by SVD.

# %%
with GpuLog():
    exp3_results = run_quick_experiment(
        experiment_name="exp3_hetero_lora",
        use_lora=True,
        lora_rank=RANKS,
        strategy="flexlora",
        stop_after=session.left(),
        **SHARED,
    )

# %% [markdown]
# ### Experiment 4: ATLAS
# The same ranks are budgets now: each client's are placed where they pay. Nobody tells the server
# the tasks; it finds who is alike, and pulls the models of a cluster together.

# %%
with GpuLog():
    exp4_results = run_quick_experiment(
        experiment_name="exp4_atlas",
        use_lora=True,
        lora_rank=RANKS,
        strategy="atlas",
        stop_after=session.left(),
        **SHARED,
    )

# %% [markdown]
# ### Experiment 5: Multi-task
# The server is told each client's task and takes one mean product for each (`oracle_cluster`,
# η = 1). It is the yardstick for ATLAS' clusters: what sharing by task can reach when the tasks
# need not be found. It is no ceiling: ATLAS keeps a model for each client, and may do better.

# %%
with GpuLog():
    exp5_results = run_quick_experiment(
        experiment_name="exp5_multitask",
        use_lora=True,
        lora_rank=RANKS,
        strategy="oracle_cluster",
        options={"eta": 1.0},
        stop_after=session.left(),
        **SHARED,
    )

# %% [markdown]
# ## 6. Where things stand
# After a lost session: run the notebook again from the top. Finished experiments are read in a
# second, an interrupted one goes on after its last round, on a new machine from the Drive.

# %%
progress()

# %% [markdown]
# ## 7. Compare
# Accuracy in the table is that of the whole evaluation sets, after the last round. One seed is a
# first look and no evidence: methods that lie two points apart can change places with the seed.

# %%
from IPython.display import Image, display

done = read_done()
display(write_summary(done))
for picture in write_plots(done):
    display(Image(filename=str(picture), width=900))

# %% [markdown]
# ## 8. What ATLAS found
# Clusters against the true tasks (which the server never saw), and each client's ranks by module.

# %%
for picture in atlas_found():
    display(Image(filename=str(picture), width=800))

# %% [markdown]
# ## 9. Verify that this is real
# Each exported model is opened with plain `transformers` and `peft`, not with this code base. Its
# loss on the task's whole evaluation set is computed again with `torch`'s cross-entropy, its change
# from the start is measured, and the bytes sent are set beside the size of its tensors.

# %%
import pandas as pd

pd.set_option("display.max_colwidth", None)
for each in done:
    print(each.title)
    display(evidence(each.run.path, GpuLog().summary()))

# %% [markdown]
# ## 10. Take the results with you
# `results.zip` has the JSON files, the table, the plots, and each run's report, rows and adapters;
# full models and commits stay here. `report.html` in a run's folder opens in any browser.

# %%
archive = zip_results()
if DRIVE:
    shutil.copy(archive, DRIVE / "atlas-colab")
download(archive)
