"""What Hydra's own shell completion leaves out: flags, and the later values of a list such as method=lorsa,lora.

The answers come from a list and from the names of files, so nothing is composed for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

FLAGS = ("--multirun", "--cfg", "--resolve", "--info", "--config-dir", "--help", "--hydra-help", "--shell-completion")
_VALUES = {
    "--cfg": ("job", "hydra", "all"),
    # Nothing, so that the shell names folders.
    "--config-dir": (),
    "-cd": (),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}


def asking_shell(arguments: Sequence[str]) -> str | None:
    """Return the shell that asks for completions; None if this is an ordinary command line."""
    queries = [each.removeprefix("query=") for each in arguments if each.startswith("query=")]
    return queries[0] if queries and {"-sc", "--shell-completion"} & set(arguments) else None


def completions(line: str, groups: Mapping[str, Sequence[str]]) -> list[str] | None:
    """Return what the last word of a command line may become; None if that is for Hydra to say.

    Args:
        line: the command line up to the cursor.
        groups: the choices of each group.
    """
    words = line.split()[1:]
    last = "" if line.endswith(" ") or not words else words.pop()
    if words and words[-1] in _VALUES:
        return [value for value in _VALUES[words[-1]] if value.startswith(last)]
    if last.startswith("-"):
        return [flag for flag in FLAGS if flag.startswith(last)]
    key, _, value = last.partition("=")
    done, comma, begun = value.rpartition(",")
    if not comma or key not in groups:
        return None
    taken = done.split(",")
    return [f"{key}={done},{name}" for name in groups[key] if name.startswith(begun) and name not in taken]


def complete_runs(incomplete: str) -> list[str]:
    """Return the runs and sweeps of the folder `runs` whose names begin so, for `lorsa`'s commands."""
    from pathlib import Path

    folder = Path("runs")
    names = ["latest", *sorted(path.name for pattern in ("*", "sweeps/*") for path in folder.glob(pattern))]
    return [name for name in names if name.startswith(incomplete) and name != "sweeps"]
