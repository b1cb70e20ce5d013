"""The model card of an exported model: what it is, what was measured, how to load it. Pure text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCardData

from atlas_flwr.models.catalog import MODELS

# As the base models' own cards say; of any other base nothing is known here.
LICENCES = {
    "minilm": "mit",
    "distilbert-base-uncased": "apache-2.0",
    "bert-base-uncased": "apache-2.0",
    "roberta-base": "mit",
    "gpt2": "mit",
}
METRIC_NAMES = {"accuracy": "accuracy", "f1": "f1", "macro_f1": "f1", "mcc": "matthews_correlation"}


@dataclass(frozen=True)
class Score:
    """What a model scored on one set of rows of one task.

    Attributes:
        task: The task.
        rows: How many rows.
        where: Which rows, in words.
        official: Whether they are all of the task's own validation rows.
        metrics: Their values by name; an absent one does not exist.
    """

    task: str
    rows: int
    where: str
    official: bool
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class CardFacts:
    """What a card tells.

    Attributes:
        name: The model's name, the card's title.
        base: The base model, by the experiment's name for it.
        hub_base: Its hub id; empty where it is a folder of a machine.
        kind: ``"adapter"``, ``"merged"`` or ``"full"``.
        labels: Names of the classes in order.
        label_task: The task those names are of.
        tasks: Tasks the model was trained on, with the columns of their texts.
        datasets: Their hub data sets.
        clients: Partitions it serves, ``of`` so many.
        of: All clients of the run.
        strategy: The method; ``options`` as written.
        options: The method's options.
        rounds: Rounds it has had, of ``rounds_asked``.
        rounds_asked: Rounds of the experiment.
        seed: The run's seed.
        ranks: LoRA rank by module; empty without an adapter.
        scores: What was measured.
        mb_up: Megabytes (10^6) all clients sent, ``mb_down`` received.
        mb_down: Megabytes all clients received.
        max_length: Tokens of a text that were read.
        version: Version of atlas-flwr; ``commit`` its source's, if known.
        commit: The commit the run came from.
        notes: Further lines a user must know.
    """

    name: str
    base: str
    hub_base: str
    kind: str
    labels: Sequence[str]
    label_task: str
    tasks: Mapping[str, Sequence[str]]
    datasets: Sequence[str]
    clients: Sequence[int]
    of: int
    strategy: str
    options: str
    rounds: int
    rounds_asked: int
    seed: int
    ranks: Mapping[str, int]
    scores: Sequence[Score]
    mb_up: float
    mb_down: float
    max_length: int
    version: str
    commit: str | None
    notes: Sequence[str] = ()


def model_card(facts: CardFacts) -> str:
    """Return ``README.md`` as the Hugging Face hub reads it: YAML front matter, then Markdown."""
    sections = (
        _what(facts),
        "## How to load it\n\n```python\n" + snippet(facts) + "```",
        _results(facts),
        _training(facts),
        _limits(facts),
    )
    return f"---\n{_front_matter(facts)}\n---\n\n" + "\n\n".join(sections) + "\n"


def base_name(base: str) -> str:
    """Return a base model's name without the folders of somebody's machine."""
    folder = base.startswith((".", "~")) or base.count("/") > 1 or "\\" in base
    return base.replace("\\", "/").rstrip("/").rpartition("/")[2] if folder else base


def licence_of(base: str) -> str | None:
    """Return the licence of a base model of the catalog, by name or hub id; None: not known."""
    by_hub_id = {model.hub_id: name for name, model in MODELS.items() if model.hub_id}
    return LICENCES.get(by_hub_id.get(base, base))


def _front_matter(facts: CardFacts) -> str:
    scores = [
        EvalResult(
            task_type="text-classification",
            dataset_type=facts.datasets[0] if len(facts.datasets) == 1 else score.task,
            dataset_name=score.task,
            dataset_split="validation",
            metric_type=METRIC_NAMES[metric],
            metric_name=metric,
            metric_value=round(value, 4),
        )
        for score in facts.scores
        for metric, value in score.metrics.items()
        if score.official and metric in METRIC_NAMES
    ]
    data = ModelCardData(
        base_model=facts.hub_base or None,
        library_name="peft" if facts.kind == "adapter" else "transformers",
        pipeline_tag="text-classification",
        license=licence_of(facts.base) or "unknown",
        datasets=list(facts.datasets) or None,
        tags=["federated-learning", "flower", *(["lora"] if facts.ranks else [])],
        model_name=facts.name,
        eval_results=scores or None,
    )
    return str(data.to_yaml()).rstrip()


def _what(facts: CardFacts) -> str:
    kind = {
        "adapter": "A LoRA adapter with its task head",
        "merged": "A whole classifier: its LoRA adapter is merged into the weights",
        "full": "A whole classifier, fully fine-tuned",
    }[facts.kind]
    names = "\n".join(f"| {i} | {_cell(label)} |" for i, label in enumerate(facts.labels))
    text = (
        f"# {_cell(facts.name)}\n\n{kind}, on {base_name(facts.base)}, trained by federated "
        f"learning over {_tasks(facts)} with atlas-flwr.\n\n| class | name |\n|---|---|\n{names}"
    )
    if len(facts.tasks) > 1:
        text += f"\n\nThe names are those of the task {facts.label_task}; one head serves all."
    return text


def snippet(facts: CardFacts) -> str:
    """Return the Python lines that load the model and classify a text, in its own folder."""
    two = len(facts.tasks[facts.label_task]) == 2
    text = '"A text", "its second text"' if two else '"A text"'
    adapter = facts.kind == "adapter"
    auto = "AutoModelForSequenceClassification"
    imports = ("AutoConfig", auto, "AutoTokenizer") if adapter else (auto, "AutoTokenizer")
    opened = (
        f"base = PeftConfig.from_pretrained(folder).base_model_name_or_path\n"
        f"config = AutoConfig.from_pretrained(folder)  # the classes and their names\n"
        f"plain = {auto}.from_pretrained(base, config=config)\n"
        "model = PeftModel.from_pretrained(plain, folder).eval()\n"
        if adapter
        else f"model = {auto}.from_pretrained(folder).eval()\n"
    )
    return (
        "import torch\n"
        + ("from peft import PeftConfig, PeftModel\n" if adapter else "")
        + f"from transformers import {', '.join(imports)}\n\n"
        'folder = "."  # this folder, or its name on the hub\n'
        + opened
        + "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        f"words = tokenizer({text}, truncation=True, max_length={facts.max_length}, "
        'return_tensors="pt")\n'
        "with torch.inference_mode():\n"
        "    chances = model(**words).logits.softmax(-1)[0]\n"
        "label = model.config.id2label[int(chances.argmax())]\n"
        "print(label, float(chances.max()))\n"
    )


def _results(facts: CardFacts) -> str:
    if not facts.scores:
        return "## Results\n\nNothing was measured of this model."
    columns = [m for m in METRIC_NAMES if any(m in score.metrics for score in facts.scores)]
    lines = [
        "| task | rows | " + " | ".join(columns) + " | loss |",
        "|---|---|" + "---|" * (len(columns) + 1),
    ]
    for score in facts.scores:
        values = [score.metrics.get(name) for name in (*columns, "loss")]
        told = " | ".join("–" if value is None else f"{value:.4f}" for value in values)
        lines.append(f"| {_cell(score.task)} | {score.rows} ({score.where}) | {told} |")
    return (
        "## Results\n\n" + "\n".join(lines) + "\n\nMeasured by the run itself, of one seed: "
        "another seed gives other numbers. f1 is class 1's, macro_f1 the mean over classes."
    )


def _training(facts: CardFacts) -> str:
    clients = ", ".join(map(str, facts.clients))
    rounds = f"{facts.rounds} of {facts.rounds_asked}"
    rows = [
        ("base model", base_name(facts.base)),
        ("tasks", _tasks(facts)),
        ("clients of this model", f"{clients} (of {facts.of})"),
        ("strategy", f"{facts.strategy}{f' ({facts.options})' if facts.options else ''}"),
        ("rounds", rounds if facts.rounds != facts.rounds_asked else str(facts.rounds)),
        ("seed", str(facts.seed)),
        ("moved by all clients", f"{facts.mb_up:.2f} MB up, {facts.mb_down:.2f} MB down"),
        ("tokens read of a text", str(facts.max_length)),
        ("made with", f"atlas-flwr {facts.version}, commit {facts.commit or 'unknown'}"),
    ]
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows)
    text = f"## Training\n\n| | |\n|---|---|\n{table}"
    if not facts.ranks:
        return text
    each = "\n".join(f"| `{module}` | {rank} |" for module, rank in facts.ranks.items())
    low, high = min(facts.ranks.values()), max(facts.ranks.values())
    span = f"{low}" if low == high else f"{low} to {high}"
    return (
        f"{text}\n\n<details><summary>LoRA rank {span}, by module</summary>\n\n"
        f"| module | rank |\n|---|---|\n{each}\n\n</details>"
    )


def _limits(facts: CardFacts) -> str:
    known = licence_of(facts.base)
    licence = (
        f"The base model's licence is {known}."
        if known
        else "The base model's licence is not known to the program that wrote this card."
    )
    lines = [
        f"For classifying texts like those of {_tasks(facts)}, in the language of the training "
        "rows. Other texts get a class too, without any warning.",
        "Probabilities are the softmax of the logits and were not calibrated.",
        f"A text beyond {facts.max_length} tokens was cut in training.",
        "Federated training keeps rows with their clients; a model can still reveal something of "
        "the rows it saw. Bias of base model and rows was not examined.",
        f"{licence} Whoever publishes this model chooses its licence with that, and with the "
        "rights in the rows, in mind.",
        *facts.notes,
    ]
    return "## Intended use and limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _tasks(facts: CardFacts) -> str:
    return ", ".join(facts.tasks)


def _cell(text: str) -> str:
    """Return text that can't break a table."""
    return " ".join(str(text).split()).replace("|", "\\|")
