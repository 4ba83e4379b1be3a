"""The workspace of `lorsa dashboard`: which panels a project has, by wandb-workspaces."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from lorsa.runner.errors import UserError
from lorsa.runner.glue.submission import FILES

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

# In the order of GLUE's tables; AX has no training set of its own.
TASKS = tuple(FILES)
METHOD = "method_name"


def make_workspace(entity: str, project: str, name: str) -> Workspace:
    """Return the workspace, not saved.

    Args:
        entity: user or team.
        project: of wandb.
        name: of the view.

    Raises:
        UserError: the name is none that wandb takes.
    """
    from wandb_workspaces.workspaces import Workspace, WorkspaceSettings

    try:
        return Workspace(
            entity=entity,
            project=project,
            name=name,
            sections=[_scores(), _pareto(), _curves(), _cost(), _components()],
            settings=WorkspaceSettings(x_axis="step", max_runs=100),
        )
    except ValueError as error:
        raise UserError(f"--name {name}: {str(error).strip().splitlines()[-1].strip()}.") from error


def spec(workspace: Workspace) -> dict[str, Any]:
    """Return what is saved, as plain data."""
    document: dict[str, Any] = workspace._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return document


def save(workspace: Workspace) -> str:
    """Save it in place of the view of its name, if there is one, and return its address.

    Raises:
        UserError: the project is not there, or the server refuses.
    """
    from wandb_workspaces.workspaces import internal

    # Made of the view's name, so that the same command finds what it saved before.
    slug = hashlib.sha256(workspace.name.encode()).hexdigest()[:11]
    workspace._internal_name = internal._url_query_str_to_internal_name(slug)
    place = f"{workspace.entity}/{workspace.project}"
    try:
        workspace._internal_id = internal.get_view_dict(workspace.entity, workspace.project, slug)["id"]
    except ValueError as error:
        if str(error).startswith("Project"):
            raise UserError(f"There is no project {place} at wandb; lorsa sync makes one.") from error
    try:
        return str(workspace.save().url)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"wandb did not save the workspace of {place} ({type(error).__name__}: {reason}).") from error


def _section(name: str, panels: list[Any], columns: int = 3) -> Section:
    from wandb_workspaces.workspaces import Section, SectionLayoutSettings

    rows = -(-len(panels) // columns)
    return Section(
        name=name,
        panels=panels,
        is_open=True,
        layout_settings=SectionLayoutSettings(columns=columns, rows=rows),
    )


def _bars(metric: str, title: str) -> Any:
    """Return bars of a number by method: the mean over its runs, with their standard deviation."""
    import wandb_workspaces.reports.v2 as wr

    return wr.BarPlot(
        title=title,
        metrics=[metric],
        groupby=wr.Config(METHOD),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        orientation="h",
    )


def _points(x: str, y: str, title: str, *, log_x: bool, front: bool) -> Any:
    """Return a point per run, and where `front` the best of `y` up to each `x`."""
    import wandb_workspaces.reports.v2 as wr

    return wr.ScatterPlot(
        title=title, x=wr.SummaryMetric(x), y=wr.SummaryMetric(y), log_x=log_x, running_ymax=front or None
    )


def _line(x: str, y: str, title: str) -> Any:
    """Return curves, the mean of each method with the range of its runs."""
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(
        title=title, x=x, y=[y], groupby=wr.Config(METHOD), groupby_aggfunc="mean", groupby_rangefunc="minmax"
    )


def _scores() -> Section:
    return _section("Score by method and task", [_bars(f"score/by_task/{task}", task) for task in TASKS])


def _pareto() -> Section:
    panels = [
        _points(
            "params/adapter", f"score/by_task/{task}", f"{task}: score by adapter parameters", log_x=True, front=True
        )
        for task in TASKS
    ]
    return _section("Pareto: score by trained parameters", panels)


def _curves() -> Section:
    panels = [
        _line("step", "train/loss", "training loss"),
        _line("epoch", "eval/primary", "dev score"),
        _line("step", "train/grad_norm", "gradient norm"),
        _line("step", "train/learning_rate", "learning rate"),
    ]
    return _section("Curves", panels, columns=2)


def _cost() -> Section:
    panels = [
        _bars("memory/peak_gib", "peak memory, GiB"),
        _bars("memory/adapter_mib", "adapter on disk, MiB"),
        _bars("speed/tokens_per_s", "tokens per second"),
        _bars("seconds/train", "seconds of training"),
        _points("memory/peak_gib", "score/test", "score by peak memory", log_x=True, front=True),
    ]
    return _section("Memory and time", panels)


def _components() -> Section:
    import wandb_workspaces.reports.v2 as wr

    panels = [
        wr.MediaBrowser(title="what was chosen, and how far it moved", media_keys=["components"], num_columns=1),
        _bars("components/principal_share", "share of chosen components that are among the largest"),
        _bars("components/median_index", "median index of the chosen components"),
        _points("components/principal_share", "score/test", "score by that share", log_x=False, front=False),
    ]
    return _section("LoRSA's components", panels, columns=2)
