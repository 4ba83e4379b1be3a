"""One run at wandb, made of what is in the run's directory: its id is the signature, its history is metrics.jsonl.

Whatever is sent can be sent again: history goes on behind the last step that the server has, and artifacts are told
apart by their content.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorsa.runner.trackers.rows import Row, display_name, read_rows, summary, tags
from lorsa.runner.trackers.state import folder

if TYPE_CHECKING:
    import wandb

INIT_SECONDS = 20.0
FIGURE = "components"


def open_run(
    run: Path,
    config: Mapping[str, Any],
    group: str | None,
    *,
    online: bool,
    root: Path | None = None,
    finish_seconds: float = 0.0,
    watched: int | None = None,
) -> wandb.Run:
    """Begin the run at wandb, or go on with it.

    Args:
        run: the run's directory.
        config: its config.
        group: the sweep.
        online: send at once; else to files.
        root: the folder in which wandb makes its own, by default the run's.
        finish_seconds: how long `finish` may send what is left; 0 for as long as it takes.
        watched: the process whose use of the machine is recorded; None for no such records.
    """
    import wandb

    tracker = config["tracker"]
    settings = wandb.Settings(
        mode="online" if online else "offline",
        root_dir=str(root or run),
        run_id=run.name,
        resume="allow" if online else None,
        project=tracker.get("project") or "lorsa",
        entity=tracker.get("entity"),
        run_group=group,
        run_name=display_name(config),
        run_job_type="train",
        run_tags=tuple(tags(config)),
        reinit="create_new",
        init_timeout=INIT_SECONDS,
        finish_timeout=finish_seconds,
        finish_timeout_raises=finish_seconds > 0,
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        x_disable_meta=True,
        x_save_requirements=False,
        x_disable_stats=watched is None,
    )
    if watched is not None:
        settings.x_stats_pid = watched
    shown = {key: value for key, value in config.items() if key not in ("tracker", "force", "dry_run")}
    # Panels group by keys at the top alone.
    names = {f"{key}_name": config[key]["name"] for key in ("method", "task", "model", "data")}
    opened = wandb.init(settings=settings, config={"signature": run.name, **names, **shown})
    for axis in ("step", "epoch"):
        opened.define_metric(axis, hidden=True)
    opened.define_metric("train/*", step_metric="step")
    # By epochs, runs with other batch sizes compare.
    opened.define_metric("eval/*", step_metric="epoch", summary="last")
    opened.define_metric("eval/primary", step_metric="epoch", summary="max,last")
    return opened


def log_rows(opened: wandb.Run, rows: Iterable[Row], after: int) -> int:
    """Log the rows behind a step, and return the last step that is logged now.

    Args:
        opened: the run.
        rows: by rising step.
        after: the last step that was logged before.
    """
    for row in rows:
        if row.step > after:
            opened.log(row.values, step=row.step)
            after = row.step
    return after


def log_result(opened: wandb.Run, run: Path, config: Mapping[str, Any]) -> list[wandb.Artifact]:
    """Add what a finished run found: its summary, and as artifacts its adapter and its report.

    The report is the model card, result.json, the config, metrics.jsonl and the predictions.

    Returns:
        The artifacts, on their way; `wait` says whether they arrived.
    """
    import wandb

    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    opened.summary.update(summary(result))
    if not config["tracker"].get("artifacts", True):
        return []
    about = {"signature": run.name, "score": result["primary_metric"], "task": result["task"]}
    adapter = wandb.Artifact(f"adapter-{run.name}", type="model", metadata=about)
    # Without a copy: the files of a finished run do not change.
    adapter.add_dir(str(run / "adapter"), policy="immutable", skip_cache=True)
    records = wandb.Artifact(f"report-{run.name}", type="report", metadata=about)
    for name in ("result.json", "config.yaml", "metrics.jsonl", "adapter/README.md"):
        records.add_file(str(run / name), name=Path(name).name, policy="immutable", skip_cache=True)
    if (run / "predictions").is_dir():
        records.add_dir(str(run / "predictions"), name="predictions", policy="immutable", skip_cache=True)
    return [opened.log_artifact(adapter), opened.log_artifact(records)]


def write_offline(run: Path, config: Mapping[str, Any], group: str | None) -> Path:
    """Write the run to files that `wandb sync` takes, in place of all that were there; returns their folder.

    One folder, however often the run was interrupted: wandb does not join several of one id.
    """
    home = folder(run)
    home.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=run, prefix=".wandb.") as temporary:
        opened = open_run(run, config, group, online=False, root=Path(temporary))
        log_rows(opened, read_rows(run / "metrics.jsonl"), after=-1)
        if (run / "result.json").is_file():
            log_result(opened, run, config)
        written = Path(opened.dir).parent
        opened.finish()
        drop_files(run)
        return Path(shutil.move(written, home / written.name))


def drop_files(run: Path) -> None:
    """Remove wandb's own folders of earlier attempts; metrics.jsonl has what is in them."""
    for pattern in ("offline-run-*", "run-*"):
        for old in folder(run).glob(pattern):
            shutil.rmtree(old, ignore_errors=True)
