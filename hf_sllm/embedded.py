"""The checkpoint that comes with the package."""

from importlib.resources import files


def embedded_checkpoint() -> str:
    """Where the checkpoint that comes with the package lies.

    Raises:
        ValueError: If this installation has none.
    """
    folder = files("hf_sllm") / "checkpoints" / "sllm-stories"
    if not (folder / "config.json").is_file():
        raise ValueError("this installation has no embedded checkpoint: give one by `--model`.")
    return str(folder)
