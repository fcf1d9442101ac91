"""What each choice is worth: one recipe trained with one change at a time, all beside one baseline."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from .curves import write_curves
from .recipe import find_recipe, load_recipe, merge, read_yaml
from .results import Result, print_results, write_results
from .run import train

ABLATIONS = Path(__file__).parent / "ablations"
KEYS = {"recipe", "changes", "variants"}


def ablate(file: str | Path, output_dir: str | Path, console: Console | None = None) -> list[Result]:
    """Trains each variant of a recipe and measures it.

    A variant that is in `output_dir` already is not trained again, one that was interrupted goes on where it stopped.
    `output_dir` gets `results.json`, `curves.csv` and `curves.png` of all of them.

    Args:
        file: A YAML file, or the name of one of the package's, with `recipe`, the name or path of a recipe; `changes`,
            values that all variants change in it; and `variants`, by name the values that each changes besides. The
            first one trains the baseline.
        output_dir: Each variant has a folder in it.
        console: Where the table is printed.

    Returns:
        The lines of the table.

    Raises:
        ValueError: If the file has other keys or lacks one.
    """
    output_dir = Path(output_dir)
    values = read_yaml(find_recipe(str(file), ABLATIONS))
    if set(values) != KEYS:
        raise ValueError(f"{file} has the keys {', '.join(sorted(values))}: it must have {', '.join(sorted(KEYS))}.")
    results: list[Result] = []
    folders: dict[str, Path] = {}
    baseline: float | None = None
    for name, variant in values["variants"].items():
        changes: dict[str, Any] = merge(values["changes"] or {}, variant or {})
        folder = output_dir / name
        recipe = load_recipe(values["recipe"], folder, {**changes, "baseline": not results})
        lines = read_results(folder) or train(recipe, resume=folder.exists(), console=Console(quiet=True))
        if not results:
            results += lines[:-1]
            baseline = lines[-2].bits_per_byte
            folders[lines[-2].name] = folder / "baseline"
        last = lines[-1]
        last.name = name
        last.ratio = last.bits_per_byte / baseline if last.bits_per_byte and baseline else None
        results.append(last)
        folders[name] = folder
    write_results(results, output_dir / "results.json")
    write_curves(folders, output_dir)
    print_results(results, str(file), console or Console())
    return results


def read_results(folder: Path) -> list[Result] | None:
    """The lines that a finished run left."""
    file = folder / "results.json"
    return [Result(**line) for line in json.loads(file.read_text(encoding="utf-8"))] if file.exists() else None
