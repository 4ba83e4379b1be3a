"""`lorsa-run --help`: what can be chosen, and the flags that matter.

Hydra's own help composes the config and lists every group a few times over; this reads the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_TEXT = """\
lorsa-run: fine-tune, evaluate and record GLUE runs.

  lorsa-run method=lorsa task=sst2                     one run, on the embedded model and demo data
  lorsa-run method=lora task=cola method.config.r=4    any choice, any key
  lorsa-run -m method=lorsa,lora seed=0,1,2            a sweep: one run after the other
  lorsa-run -m seed=0,1,2 hydra/launcher=slurm         a sweep as a SLURM array; hydra/launcher=local: on this machine
  lorsa-run --cfg job method=lora                      print the whole config of a run, and stop

Choices:
{choices}

Flags:
  -m, --multirun      run every combination of the comma-separated values
  dry_run=true        check, say what would be run or submitted, and stop
  --cfg job           print the config; with --resolve, interpolations filled in
  --info defaults     print which file each part comes from
  --config-dir DIR    add a folder with more choices, laid out as conf/ is
  --hydra-help        the other flags and Hydra's own settings

Completion of choices, keys and flags with the tab key; for bash, in ~/.bashrc (Hydra has fish and zsh too):
  eval "$(lorsa-run --shell-completion install=bash)"

A run is written to runs/<signature>/; the same command again says that it is done, or goes on where it was cut off.
Exit codes: 0 done; 1 a defect of the program; 2 refused (bad input, a loss that is not finite, a run that another
process holds), with one sentence; 130 or 143 interrupted."""


def help_text(config_dirs: Sequence[str]) -> str:
    """Return the help, with the choices of every group in these folders."""
    lines = [f"  {group + '=':12}{', '.join(names)}" for group, names in choices(config_dirs).items()]
    return _TEXT.format(choices="\n".join(lines))


def choices(config_dirs: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of the YAML files of every group in these folders, in order."""
    groups: dict[str, set[str]] = {}
    for file in (file for folder in config_dirs for file in Path(folder).glob("*/*.yaml")):
        groups.setdefault(file.parent.name, set()).add(file.stem)
    return {group: sorted(names) for group, names in sorted(groups.items())}
