"""What finished LoRSA runs chose and moved, read from their directories without the base model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorsa.runner.commands.finished import read_result
from lorsa.runner.errors import UserError

if TYPE_CHECKING:
    from lorsa.runner.movement import Movement


@dataclass(frozen=True)
class Module:
    """One adapted module of a run.

    Attributes:
        name: in the base model.
        layer: the number in its name; None where there is none.
        type: the shortest ending of its name that tells it from the other modules of a layer.
        movement: what its adapter did.
    """

    name: str
    layer: int | None
    type: str
    movement: Movement

    @property
    def quartiles(self) -> list[float] | None:
        """Shares of the chosen components in the four quarters of the spectrum, largest values first."""
        indices, count = self.movement.indices, self.movement.count
        quarters = [index * 4 // count for index in indices]
        return [quarters.count(quarter) / len(indices) for quarter in range(4)] if indices else None

    @property
    def principal_share(self) -> float | None:
        """Share of the k chosen components that are among the first k, which a principal selection takes."""
        indices = self.movement.indices
        return sum(index < len(indices) for index in indices) / len(indices) if indices else None


@dataclass(frozen=True)
class Analysis:
    """One finished LoRSA run.

    Attributes:
        folder: its directory.
        result: its result.json.
        form: `subspace`, `selected` or `all`, see `LorsaConfig`.
        modules: the adapted ones, by layer and type.
        empty: modules that a global allocation gave no component, and that were left alone for it.
    """

    folder: Path
    result: dict[str, Any]
    form: str
    modules: list[Module]
    empty: list[str]

    @property
    def label(self) -> str:
        """The run in few words."""
        result = self.result
        return f"{result['method']} on {result['task']}, {result['model']}, seed {result['seed']}"


def read_run(folder: Path) -> Analysis:
    """Return what the finished LoRSA run in `folder` chose and moved.

    Raises:
        UserError: it is no run directory, not finished, of another method, or its adapter is damaged.
    """
    directory, result = read_result(folder)
    folder = directory.path
    components = result.get("components")
    if components is None:
        raise UserError(
            f"The run {folder} is of method={result.get('method')}, which selects no singular components; "
            "only LoRSA's runs can be analysed."
        )
    # Imported here: NumPy takes a while, and what is wrong so far was said without it.
    from safetensors import SafetensorError

    from lorsa.runner.movement import adapter_movement, read_adapter

    try:
        config = json.loads((directory.adapter / "adapter_config.json").read_text(encoding="utf-8"))
        space, rotate = config["space"], config["rotate"]
        linear = config.get("rotation") == "linear"  # adapters of earlier versions have no such field
        tensors = read_adapter(directory.adapter / "adapter_model.safetensors")
        movements = adapter_movement(tensors, components, space, linear)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else " ".join(str(error).split()).rstrip(".")
        raise UserError(f"The adapter of the run {folder} is damaged: {reason}.") from error
    return Analysis(
        folder=folder,
        result=result,
        form=space if space == "subspace" else rotate,
        modules=_modules(movements),
        empty=[name for name, chosen in components.items() if not chosen and name not in movements],
    )


def _modules(movements: dict[str, Movement]) -> list[Module]:
    places = {name: _place(name) for name in movements}
    types = _short({path for _, path in places.values()})
    modules = [Module(name, places[name][0], types[places[name][1]], movements[name]) for name in movements]
    return sorted(modules, key=lambda module: (-1 if module.layer is None else module.layer, module.type))


def _place(name: str) -> tuple[int | None, str]:
    """Return the first number in a module's name, and the name without it."""
    parts = name.split(".")
    position = next((position for position, part in enumerate(parts) if part.isdigit()), None)
    if position is None:
        return None, name
    return int(parts[position]), ".".join(parts[:position] + parts[position + 1 :])


def _short(paths: Iterable[str]) -> dict[str, str]:
    """Return for each dotted path its shortest ending that no other path has."""
    paths = list(paths)

    def shortest(path: str) -> str:
        parts = path.split(".")
        endings = (".".join(parts[-length:]) for length in range(1, len(parts)))
        return next((end for end in endings if sum(f".{p}".endswith(f".{end}") for p in paths) == 1), path)

    return {path: shortest(path) for path in paths}
