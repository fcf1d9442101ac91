"""Sparse autoencoders on disk, in SAELens's format; sparsify's is read too."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .sparse_autoencoder import SparseAutoencoder

WEIGHTS, CONFIG, SPARSIFY_WEIGHTS = "sae_weights.safetensors", "cfg.json", "sae.safetensors"

# SAELens's names of the activations that it knows. `batchtopk` uses, once fitted, one threshold for all features.
ARCHITECTURES = {
    "relu": "standard",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "batchtopk": "jumprelu",
    "abstopk": "abstopk",
    "afa": "afa",
}
ACTIVATION_OF = {"standard": "relu", "topk": "topk", "abstopk": "abstopk", "jumprelu": "jumprelu", "afa": "afa"}


def save_sae(sae: SparseAutoencoder, folder: str | Path, **about: Any) -> None:
    """Writes weights and config as SAELens reads them; `afa` alone is known to this library only.

    Args:
        about: What else is to be known, as `site="latents"`; it is kept in the config's metadata as `hf_sllm_site`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().float().cpu().contiguous() for name, value in sae.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    config = {
        "architecture": ARCHITECTURES[sae.activation],
        "d_in": sae.W_enc.shape[0],
        "d_sae": sae.features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0", **{f"hf_sllm_{name}": value for name, value in about.items()}},
    }
    if config["architecture"] in ("topk", "abstopk"):
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


def load_sae(folder: str | Path) -> tuple[SparseAutoencoder, dict[str, Any]]:
    """An autoencoder in SAELens's or sparsify's format, and what was noted of it.

    Raises:
        FileNotFoundError: If the folder holds neither.
        ValueError: If it is of a kind that is not known here.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG}: give the folder of a sparse autoencoder.")
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    read = from_sparsify if (folder / SPARSIFY_WEIGHTS).is_file() else from_saelens
    sae = read(folder, config)
    about = {name.removeprefix("hf_sllm_"): value for name, value in config.get("metadata", {}).items()}
    return sae.eval().requires_grad_(False), about


def from_saelens(folder: Path, config: dict[str, Any]) -> SparseAutoencoder:
    """One that SAELens saved: what it does to vectors before and after is folded into the weights."""
    architecture = config.get("architecture")
    if architecture not in ACTIVATION_OF:
        raise ValueError(f"architecture={architecture!r} is not read; known are {', '.join(ACTIVATION_OF)}.")
    for name in ("normalize_activations", "reshape_activations"):
        if config.get(name, "none") not in ("none", None):
            raise ValueError(f"{name}={config[name]!r} is not read, only 'none': fold it into the weights first.")
    weights = load_file(folder / WEIGHTS)
    if not config.get("apply_b_dec_to_input", True):
        weights["b_enc"] = weights["b_enc"] + weights["b_dec"] @ weights["W_enc"]
    if config.get("rescale_acts_by_decoder_norm"):
        norms = weights["W_dec"].norm(dim=1)
        weights["W_enc"], weights["b_enc"] = weights["W_enc"] * norms, weights["b_enc"] * norms
        weights["W_dec"] = weights["W_dec"] / norms[:, None]
    return filled(ACTIVATION_OF[architecture], config.get("k"), weights)


def from_sparsify(folder: Path, config: dict[str, Any]) -> SparseAutoencoder:
    """One that sparsify saved."""
    if config.get("activation", "topk") != "topk" or config.get("skip_connection") or config.get("transcode"):
        raise ValueError("Of sparsify's autoencoders those with activation='topk' are read, and no transcoders.")
    weights = load_file(folder / SPARSIFY_WEIGHTS)
    encoder = {"W_enc": weights.pop("encoder.weight").T.contiguous(), "b_enc": weights.pop("encoder.bias")}
    return filled("topk", config["k"], {**weights, **encoder})


def filled(activation: str, k: int | None, weights: dict[str, torch.Tensor]) -> SparseAutoencoder:
    """An autoencoder with these weights."""
    features, width = weights["W_dec"].shape
    sae = SparseAutoencoder(width, features, activation, k if activation in ("topk", "abstopk") else None)
    sae.load_state_dict(weights)
    return sae
