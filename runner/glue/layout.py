"""Where the files of a task lie in a local folder, in either of the two layouts in which GLUE is passed around.

- The hub's: `<path>/<name>/<split>-*.parquet`, as in a clone of nyu-mll/glue.
- The official download's: `<path>/<FOLDER>/train.tsv`, `dev.tsv`, `test.tsv`, as the GLUE download script leaves it.

Standard library only: the fingerprint of the data is taken before anything heavy is imported.
"""

from dataclasses import dataclass
from pathlib import Path

from lorsa.runner.errors import UserError
from lorsa.runner.schema import DataConfig, TaskConfig

MRPC_CORPUS = "msr_paraphrase_train.txt"
MRPC_DEV_IDS = "dev_ids.tsv"

# The download script has put the diagnostic set in either folder and under any of these names over the years; the full
# file comes before the bare one because it has the labels.
_AX_FOLDERS = ("AX", "diagnostic")
_AX_FILES = ("AX.tsv", "diagnostic-full.tsv", "diagnostic.tsv")


@dataclass(frozen=True)
class LocalFiles:
    """The files of one task.

    Attributes:
        layout: "parquet" or "tsv".
        splits: for each split that is there, its files in order. An MRPC split without a TSV of its own is the raw
            corpus followed by the official list of dev ids.
    """

    layout: str
    splits: dict[str, list[Path]]


def find_files(task: TaskConfig, data: DataConfig) -> LocalFiles:
    """Find the files of every split of `task` under `data.path`.

    Raises:
        UserError: `data.path` is not given or not a folder, the task has no folder in it, or a split that is trained
            or scored on is missing. Missing prediction splits are left out without a word: many copies lack them.
    """
    root = _root(data)
    parquet = {split: sorted((root / name).glob(f"{split}-*.parquet")) for split, name in _splits(task).items()}
    if any(parquet.values()):
        files = LocalFiles("parquet", {split: found for split, found in parquet.items() if found})
    else:
        tsv = {split: _tsv_files(_tsv_folders(root, task, name), split) for split, name in _splits(task).items()}
        files = LocalFiles("tsv", {split: found for split, found in tsv.items() if found})
    _require(files, root, task)
    return files


def required_splits(task: TaskConfig) -> list[str]:
    """Return the splits without which a run of `task` makes no sense: what it trains on and what it is scored on."""
    return [task.train_split, *task.eval_splits]


def _root(data: DataConfig) -> Path:
    if data.path is None:
        raise UserError(
            "data=local needs data.path=<folder>: a folder with GLUE in the hub's layout (cola/train-*.parquet) "
            "or in that of the official download (CoLA/train.tsv)."
        )
    root = Path(data.path).expanduser()
    if not root.is_dir():
        raise UserError(
            f"data.path={data.path} is not a folder; it should hold one folder per task, such as cola or CoLA."
        )
    return root


def _splits(task: TaskConfig) -> dict[str, str]:
    """Map each split of `task` to the name of the task that it comes from."""
    own = dict.fromkeys([*task.eval_splits, *task.predict_splits], task.name)
    return {task.train_split: task.train_from, **own}


def _tsv_folders(root: Path, task: TaskConfig, name: str) -> list[Path]:
    """Return the folders in which the download may have put the task called `name` on the hub."""
    if name == "ax":
        return [root / folder for folder in _AX_FOLDERS]
    if name == task.name:
        return [root / task.folder]
    # Another task's training set: the official names are the hub's in another spelling (MNLI, STS-B).
    return [folder for folder in sorted(root.iterdir()) if folder.name.replace("-", "").lower() == name]


def _tsv_files(folders: list[Path], split: str) -> list[Path]:
    names = [split.replace("validation", "dev") + ".tsv"]
    if split == "test":
        names += [*_AX_FILES, "msr_paraphrase_test.txt"]
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return [folder / name]
        corpus = [folder / MRPC_CORPUS, folder / MRPC_DEV_IDS]
        if split in ("train", "validation") and all(file.is_file() for file in corpus):
            return corpus
    return []


def _require(files: LocalFiles, root: Path, task: TaskConfig) -> None:
    missing = [split for split in required_splits(task) if split not in files.splits]
    if not missing:
        return
    if files.splits:
        wanted = ", ".join(_expected(files.layout, task, split) for split in missing)
        raise UserError(f"{root} has task '{task.name}' without its {' and '.join(missing)} split: expected {wanted}.")
    present = sorted(
        folder.name for folder in root.iterdir() if any(folder.glob("*.parquet")) or any(folder.glob("*.tsv"))
    )
    wanted = " or ".join(_expected(layout, task, task.train_split) for layout in ("parquet", "tsv"))
    raise UserError(
        f"{root} has no files of task '{task.name}': expected {wanted}. "
        f"Tasks in that folder: {', '.join(present) if present else 'none'}."
    )


def _expected(layout: str, task: TaskConfig, split: str) -> str:
    name = _splits(task)[split]
    if layout == "parquet":
        return f"{name}/{split}-*.parquet"
    folder = task.folder if name == task.name else name.upper()
    return f"{folder}/{split.replace('validation', 'dev')}.tsv"
