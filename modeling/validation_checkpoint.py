"""Reading checkpoints that others made: safetensors only, whole, and of the shapes that the config says.

transformers would unpickle a `pytorch_model.bin`, and where a file is broken it often does not say which.
"""

import copy
import json
import os
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.utils import (
    ADAPTER_SAFE_WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)
from transformers.utils.hub import cached_files, has_file

from .transformers_private import find_file

# The keywords of `from_pretrained` that say where on the Hub a file is.
HUB_KEYWORDS = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download", "proxies")
# safetensors itself reads no longer header of a file.
MAX_INDEX_BYTES = 100_000_000


def check_checkpoint(model_class: Any, name: str | os.PathLike, config: PreTrainedConfig, kwargs: dict) -> None:
    """Refuses a checkpoint before anything of the size that it claims is allocated.

    Args:
        model_class: What it is to be loaded into.
        name: Its folder, or its name on the Hub.
        config: Its config.
        kwargs: Those of `from_pretrained`.

    Raises:
        ValueError: If its weights are pickled, broken or do not fit the config; the message names the file.
        OSError: If it has none.
    """
    if kwargs.get("use_safetensors") is False:
        raise ValueError("`use_safetensors` is False: only safetensors are read. Leave it out.")
    if kwargs.get("gguf_file") is not None or kwargs.get("state_dict") is not None:
        return  # the weights are not in safetensors, nor pickled
    files = weight_files(name, config, kwargs)
    shapes = {key: (shape, file) for file in files for key, shape in shapes_in(file)}
    quantized = kwargs.get("quantization_config") or getattr(config, "quantization_config", None)
    if not quantized and not kwargs.get("ignore_mismatched_sizes"):
        check_shapes(model_class, config, shapes)


def weight_files(name: str | os.PathLike, config: PreTrainedConfig, kwargs: dict) -> list[str]:
    """The files of the weights, downloaded if they are on the Hub."""
    hub = {keyword: kwargs[keyword] for keyword in HUB_KEYWORDS if kwargs.get(keyword) is not None}
    variant = kwargs.get("variant")
    whole = getattr(config, "transformers_weights", None) or of_variant(SAFE_WEIGHTS_NAME, variant)
    if not whole.endswith((".safetensors", ".safetensors.index.json")):
        raise ValueError(f"`transformers_weights` is {whole!r}: only safetensors are read.")
    found = find_file(name, whole, **hub)
    if found is not None and whole.endswith(".safetensors"):
        return [found]
    if found is None:
        whole = of_variant(SAFE_WEIGHTS_INDEX_NAME, variant)
        found = find_file(name, whole, **hub)
    if found is None:
        raise_without_weights(name, variant, hub)
    places = read_index(found)
    files = cached_files(name, sorted(set(places.values())), **hub)
    if missing := sorted(places.keys() - {key for file in files for key, _ in shapes_in(file)}):
        raise ValueError(f"{found} names {missing[0]!r}, which no shard has. The files do not belong together.")
    return files


def check_adapter(name: str | os.PathLike, kwargs: dict) -> None:
    """Refuses an adapter whose weights are pickled or broken, see `check_checkpoint`."""
    hub = {keyword: kwargs[keyword] for keyword in HUB_KEYWORDS if kwargs.get(keyword) is not None}
    found = find_file(name, ADAPTER_SAFE_WEIGHTS_NAME, **hub)
    if found is None:
        raise ValueError(
            f"{name} has an adapter without {ADAPTER_SAFE_WEIGHTS_NAME}: only safetensors are read. Save it anew with "
            "`save_pretrained`."
        )
    for _ in shapes_in(found):
        pass


def of_variant(file: str, variant: str | None) -> str:
    """A file's name with the variant before its last suffix, as transformers writes it."""
    stem, suffix = file.rsplit(".", 1)
    return file if variant is None else f"{stem}.{variant}.{suffix}"


def raise_without_weights(name: str | os.PathLike, variant: str | None, hub: dict) -> None:
    """Says what is there in place of safetensors."""
    places = {key: value for key, value in hub.items() if key not in ("subfolder", "force_download")}
    for file in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        pickled = of_variant(file, variant)
        if has_file(str(name), os.path.join(hub.get("subfolder", ""), pickled), **places):
            raise ValueError(
                f"{name} has its weights in {pickled}, a pickle, which can run any code when it is read: only "
                "safetensors are. Load it where you trust it, and save it anew with `save_pretrained`."
            )
    raise OSError(f"{name} has no {of_variant(SAFE_WEIGHTS_NAME, variant)}: there are no weights to load.")


def read_index(file: str) -> dict[str, str]:
    """The shard in which an index has each tensor.

    Raises:
        ValueError: If it is no index, or names files that are no safetensors beside it.
    """
    if os.path.getsize(file) > MAX_INDEX_BYTES:
        raise ValueError(f"{file} has {os.path.getsize(file):,} bytes: an index has at most {MAX_INDEX_BYTES:,}.")
    try:
        with open(file, encoding="utf-8") as opened:
            index = json.load(opened)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no index of weights: {error}. Download it again.") from error
    parts = [index.get(key) for key in ("weight_map", "metadata")] if isinstance(index, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{file} is no index of weights: it needs a `weight_map` and `metadata`. Download it again.")
    for shard in index["weight_map"].values():
        if not isinstance(shard, str) or PurePath(shard).name != shard or not shard.endswith(".safetensors"):
            raise ValueError(f"{file} names the shard {shard!r}: only safetensors in the same folder are read.")
    return index["weight_map"]


def shapes_in(file: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of a file by name, with their shapes; only its header is read."""
    try:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118  it is no mapping
                yield key, tuple(opened.get_slice(key).get_shape())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged or incomplete ({error}). Download or copy it again.") from error


def check_shapes(model_class: Any, config: PreTrainedConfig, shapes: dict[str, tuple[tuple[int, ...], str]]) -> None:
    """Refuses tensors of another shape than the model's, which is built without memory for it."""
    with torch.device("meta"), init.no_init_weights():
        model = model_class(copy.deepcopy(config))
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    prefix = f"{model.base_model_prefix}."
    for key, (shape, file) in shapes.items():
        # A model without its head is read from the checkpoint of one with it, and the other way round.
        known = next((name for name in (key, key.removeprefix(prefix), prefix + key) if name in expected), None)
        if known is not None and expected[known] != shape:
            raise ValueError(
                f"{file} has {key!r} of shape {shape}: by its config.json it must be {expected[known]}. The two "
                "do not belong together."
            )
