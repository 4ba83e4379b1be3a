"""Command lines in texts: found, and expanded into the override lists that they stand for."""

import itertools
import re
import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser


def lorsa_run_lines(text: str) -> list[str]:
    """The `lorsa-run` lines of a text, continued lines joined."""
    joined = re.sub(r"\\\n#?\s*", " ", text)
    return re.findall(r"^[#>\s]*(lorsa-run\b.*)$", joined, flags=re.MULTILINE)


def overrides_of(command: str) -> list[list[str]]:
    """The override lists of a command: one, or for a sweep each combination."""
    words = [word for word in shlex.split(command, comments=True)[1:] if "=" in word and not word.startswith("-")]
    choices = []
    for override in OverridesParser.create().parse_overrides(words):
        if override.is_sweep_override():
            choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([override.input_line])
    return [list(combination) for combination in itertools.product(*choices)]
