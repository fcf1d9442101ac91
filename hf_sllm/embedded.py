"""The checkpoints that come with the package."""

from importlib.resources import files


def embedded_checkpoint(name: str = "sllm-stories") -> str:
    """Where a checkpoint that comes with the package lies.

    Args:
        name: `sllm-stories`, an SLLM, or `sentence-vae`, a sentence VAE.

    Raises:
        ValueError: If this installation has none of that name.
    """
    folder = files("hf_sllm") / "checkpoints" / name
    if not (folder / "config.json").is_file():
        raise ValueError(f"this installation has no embedded checkpoint {name!r}: give a model by its path or name.")
    return str(folder)
