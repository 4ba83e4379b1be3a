"""Model cards: the README.md of a folder of weights, with the front matter that the hub reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lorsa.runner.glue.fingerprint import HUB_DATASET
from lorsa.runner.result import Result

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CARD = "README.md"

Kind = Literal["adapter", "selected", "lora", "merged"]

# The hub's names of metrics, where they differ from those of `evaluate`'s GLUE.
_HUB_METRICS = {"pearson": "pearsonr", "spearman": "spearmanr"}

_DEMO = (
    "> **Demo data, not GLUE.** The training rows and the rows of the scores are made up by a grammar. The numbers\n"
    "> below say nothing about the task of that name.\n"
)

_WHAT = {
    "adapter": "The trained adapter and head of one run; it needs the base model.",
    "selected": "The trained parameters of one run; they need the base model.",
    "lora": "The LoRSA adapter and the head of one run, as a LoRA adapter; it needs the base model, but not lorsa.",
    "merged": "The trained model of one run, its adapter merged into the weights; it needs neither peft nor lorsa.",
}

_BASE = """\
from transformers import AutoModelForSequenceClassification

model = AutoModelForSequenceClassification.from_pretrained("{base}", num_labels={labels})
"""

_LOADING = {
    "adapter": "from peft import PeftModel\n" + _BASE + 'model = PeftModel.from_pretrained(model, "{folder}")',
    "selected": "from pathlib import Path\n\nfrom lorsa.methods.selected import load_selected\n"
    + _BASE
    + 'model = load_selected(model, Path("{folder}"))',
    "merged": 'from transformers import pipeline\n\nclassify = pipeline("text-classification", model="{folder}")',
}
_LOADING["lora"] = _LOADING["adapter"]


def card(result: Result, kind: Kind, relative_error: float = 0.0) -> str:
    """Return the text of a model card.

    Args:
        result: the run's result.json.
        kind: what is in the folder: `adapter` and `selected` are what a run itself writes.
        relative_error: how much of the run's adapter the folder lacks; scores of a run are not those of less of it.
    """
    from huggingface_hub import ModelCard, ModelCardData

    demo, config = result["is_demo"], result["config"]
    data = ModelCardData(
        language="en",
        library_name="peft" if kind in ("adapter", "lora") else "transformers",
        pipeline_tag="text-classification",
        base_model=None if result.get("model_content") else config["model"]["path"],
        datasets=None if demo or config["data"]["name"] != "glue" else config["data"]["path"] or HUB_DATASET,
        tags=["lorsa", result["method"], "demo-data" if demo else "glue"],
        model_name=f"{result['model']}-{result['method']}-{result['task']}-seed{result['seed']}",
        eval_results=None if relative_error else _eval_results(result) or None,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(result, kind, relative_error)}").content


def _eval_results(result: Result) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    demo, config = result["is_demo"], result["config"]
    title = f"lorsa demo data, not GLUE ({result['task']})" if demo else f"GLUE {config['task']['folder']}"
    return [
        EvalResult(
            task_type="text-classification",
            dataset_type="lorsa-demo" if demo else "glue",
            dataset_name=title,
            dataset_config=result["task"],
            dataset_split=split,
            dataset_args={"source": result["data_source"], "protocol": result["protocol"]},
            metric_type=_HUB_METRICS.get(metric, metric),
            metric_name=metric,
            metric_value=value,
        )
        for split, metric, value in _scores(result)
        if value is not None
    ]


def _scores(result: Result) -> list[tuple[str, str, float | None]]:
    """Return (split, metric, value) of everything that was scored; under best_epoch both parts are the same rows."""
    parts = ("dev", "test") if result["protocol"] == "split" else ("test",)
    return [
        # Nobody takes a part of the training set for GLUE's development set.
        ("train (held-out part)" if split == "dev" else split, metric, value)
        for part in parts
        for split, metrics in result["metrics"][part].items()
        for metric, value in metrics.items()
    ]


def _body(result: Result, kind: Kind, relative_error: float) -> str:
    parts = [f"# {result['method']} on {result['task']}, {result['model']}\n"]
    if result["is_demo"]:
        parts.append(_DEMO)
    parts.append(_WHAT[kind] + "\n")
    parts.append(f"```python\n{_loading(result, kind)}\n```\n")
    parts.append("## Scores\n")
    if relative_error:
        parts.append(
            f"Of the run. This folder holds the best approximation of a lower rank, with a relative error of "
            f"{relative_error:.3g}; it was not scored.\n"
        )
    parts.append(_protocol(result) + "\n")
    rows = [[split, metric, "-" if value is None else f"{value:.4f}"] for split, metric, value in _scores(result)]
    parts.append(_table(["split", "metric", "value"], rows))
    parts.append("## Training\n")
    parts.append(_table(["setting", "value"], _settings(result)))
    parts.append("## Parameters\n")
    counts = [[name, f"{result[key]:,}"] for name, key in _COUNTS.items()]
    parts.append(_table(["", "parameters"], [*counts, ["trained", f"{result['trainable_percent']:.3g} %"]]))
    parts.append("## Versions\n")
    versions = {**result["versions"], "git commit of lorsa": result["git"]["commit"]}
    parts.append(_table(["package", "version"], [[name, value] for name, value in versions.items() if value]))
    parts.append(f"Run `{result['signature']}`, which `lorsa-run` with the settings above gives again.\n")
    return "\n".join(parts)


_COUNTS = {"adapter": "adapter_params", "head": "head_params", "whole model": "total_params"}


def _loading(result: Result, kind: Kind) -> str:
    config = result["config"]
    base = f"the folder of {result['model']}" if result.get("model_content") else config["model"]["path"]
    text = _LOADING[kind].format(base=base, folder="this folder", labels=len(config["task"]["labels"]) or 1)
    ours = config["method"]["config"]["_target_"].startswith("lorsa.")
    return f"import lorsa.methods  # makes LoRSA known to PEFT\n{text}" if kind == "adapter" and ours else text


def _protocol(result: Result) -> str:
    if result["protocol"] == "split":
        return (
            "Protocol `split`: a part of the training set was held out and chose the checkpoint; the validation set "
            "was scored once, at the end."
        )
    return (
        "Protocol `best_epoch`: the best epoch on the very rows of the score, as is the habit of the literature. It is "
        "higher than on rows that were not looked at."
    )


def _settings(result: Result) -> list[list[str]]:
    config = result["config"]
    local = result.get("model_content")
    origin = f"local files {local}" if local else f"{config['model']['path']}@{result['model_commit'] or 'main'}"
    rows = [
        ["base model", f"{result['model']} ({origin})"],
        ["data", result["data_source"]],
        ["rows", ", ".join(f"{part} {count:,}" for part, count in result["rows"].items())],
        ["best step", str(result["best_step"])],
    ]
    parts = {"method.config": config["method"]["config"], "train": config["train"], "optim": config["optim"]}
    rows += [[f"{part}.{key}", str(value)] for part, values in parts.items() for key, value in values.items()]
    engine = f"{config['engine']['name']}, {config['engine']['precision']}"
    return [*rows, ["engine", engine], ["seed", str(result["seed"])]]


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
