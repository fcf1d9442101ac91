"""What a run logged, as one table and one picture: losses, and figures measured on the way, over tokens seen."""

import csv
import json
from pathlib import Path

# What Trainer keeps its log in, beside each checkpoint and at the end.
STATE = "trainer_state.json"


def write_curves(folders: dict[str, Path], output_dir: Path) -> None:
    """Writes `curves.csv` and `curves.png`.

    Args:
        folders: Where each model was trained, by the name it has in the picture.
        output_dir: Where to write.
    """
    rows = [
        {"model": name, "tokens": tokens, **entry}
        for name, folder in folders.items()
        for tokens, entry in read_log(folder / STATE)
    ]
    columns = list(dict.fromkeys(["model", "step", "tokens", *(key for row in rows for key in row)]))
    with (output_dir / "curves.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    draw_curves(rows, output_dir / "curves.png")


def read_log(file: Path) -> list[tuple[int, dict]]:
    """The entries of a Trainer's log that belong to a step, each with the tokens seen until then."""
    entries, tokens = [], 0
    for entry in json.loads(file.read_text(encoding="utf-8"))["log_history"]:
        if "train_runtime" in entry and "loss" not in entry:
            continue  # the summary at the end
        tokens = entry.pop("num_input_tokens_seen", tokens)
        entries.append((int(tokens), {key: value for key, value in entry.items() if isinstance(value, int | float)}))
    return entries


def draw_curves(rows: list[dict], path: Path) -> None:
    """One panel for the loss, and one for each figure that was measured on the way."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('drawing curves needs `matplotlib`: pip install "hf-sllm[train]"') from error

    keys = list(dict.fromkeys(key for row in rows for key in row if key == "loss" or key.startswith("eval_")))
    if not keys:
        return
    figure = Figure(figsize=(5.5 * len(keys), 4), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        for name in dict.fromkeys(row["model"] for row in rows):
            points = [(row["tokens"], row[key]) for row in rows if row["model"] == name and key in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, marker="." if key != "loss" else None)
        if key == "loss":  # falls fast at first, then ever more slowly
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.set_xlabel("tokens seen")
        axes.set_ylabel("loss, nats per token" if key == "loss" else key.removeprefix("eval_").replace("_", " "))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
