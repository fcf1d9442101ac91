"""Pushing a checkpoint to the Hub: what goes, what stays, and all that goes in one commit."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import get_relative_import_files

from hf_sllm.modeling import modeling_sentence_vae as vae_code
from hf_sllm.modeling import modeling_sllm as sllm_code
from hf_sllm.modeling.validation_checkpoint import shapes_in

from .card import is_generated, make_card

CARD = "README.md"
WEIGHTS = ("model.safetensors", "model-?????-of-?????.safetensors", "adapter_model.safetensors")
# All that goes of a folder, besides code. What lies in folders (checkpoints, logs, a baseline) never does.
GOES = (
    *WEIGHTS,
    "model.safetensors.index.json",
    "adapter_config.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    CARD,
    "LICENSE*",
    "evaluation.json",
    "evaluation.png",
    "training.json",
    "results.json",
    "curves.csv",
    "curves.png",
)
CODE = {"sllm": sllm_code, "sentence_vae": vae_code}


@dataclass(frozen=True)
class Plan:
    """What a push does with a folder.

    Attributes:
        goes: What is uploaded, by its path in the repository: the file, or its content where that is made.
        stays: What is left where it is: each file or folder with its bytes.
    """

    goes: dict[str, Path | bytes]
    stays: dict[str, int] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of what goes."""
        return {name: len(what) if isinstance(what, bytes) else size_of(what) for name, what in self.goes.items()}


def push(
    model: str | Path | PreTrainedModel,
    repo_id: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    private: bool | None = None,
    revision: str | None = None,
    overwrite_card: bool = False,
    token: str | None = None,
    message: str = "Upload model",
) -> CommitInfo:
    """Uploads a model in one commit: its weights, code, tokenizer, card and results. What is half sent is never seen.

    Args:
        model: A folder that `save_pretrained` or a training run wrote, or a model.
        repo_id: `owner/name`; made if there is none.
        tokenizer: Saved with a model that is no folder.
        private: Whether a repository that is made can be seen by its owner only.
        revision: A branch; made if there is none. By default `main`.
        overwrite_card: Whether a card on the Hub that a person wrote or changed may be lost.
        token: By default that of `hf auth login`.
        message: Of the commit.

    Raises:
        ValueError: If there is no such model in the folder, or the card on the Hub was written by hand.
        OSError: If the Hub does not let us, or cannot be reached.
    """
    if isinstance(model, PreTrainedModel):
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            return push(folder, repo_id, None, private, revision, overwrite_card, token, message)
    planned = plan(model, repo_id)
    api = HfApi(token=token)
    return told_as_os_error(repo_id, lambda: commit(api, planned, repo_id, private, revision, overwrite_card, message))


def plan(folder: str | Path, repo_id: str) -> Plan:
    """What of a folder goes. Nothing is sent, no request is made.

    Raises:
        ValueError: If it holds no SLLM or sentence VAE, no weights in safetensors, or weights that are damaged.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: give a folder that `save_pretrained` wrote.")
    config = AutoConfig.from_pretrained(folder)
    if config.model_type not in CODE:
        raise ValueError(
            f"{folder} holds a {config.model_type!r} model: here go SLLMs and sentence VAEs. Use `hf upload`."
        )
    present = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    goes: dict[str, Path | bytes] = {
        name: path for name, path in present.items() if any(fnmatch(name, pattern) for pattern in GOES)
    }
    weights = [name for name in goes if any(fnmatch(name, pattern) for pattern in WEIGHTS)]
    if not weights:
        raise ValueError(f"{folder} has no {WEIGHTS[0]}: only weights in safetensors go. Use `save_pretrained`.")
    for name in weights:
        list(shapes_in(str(folder / name)))
    goes.update(code_of(folder, config))
    if CARD not in goes:
        card = make_card(folder, name=repo_id, is_on_hub=True)
        goes[CARD] = card.encode()
    stays = {path.name: size_of(path) for path in sorted(folder.iterdir()) if path.name not in goes}
    return Plan(dict(sorted(goes.items())), stays)


def code_of(folder: Path, config: PreTrainedConfig) -> dict[str, Path | bytes]:
    """The model's code: the folder's own, or where it has none the package's, with a config that says so."""
    module = CODE[config.model_type]
    own = folder / Path(str(module.__file__)).name
    code = own if own.is_file() else Path(str(module.__file__))
    needed = map(str, [code, *get_relative_import_files(code)])
    files: dict[str, Path | bytes] = {Path(file).name: Path(file) for file in needed}
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not raw.get("auto_map"):
        raw["auto_map"] = config.auto_map
        files["config.json"] = (json.dumps(raw, indent=2, sort_keys=True) + "\n").encode()
    return files


def commit(
    api: HfApi,
    planned: Plan,
    repo_id: str,
    private: bool | None,
    revision: str | None,
    overwrite_card: bool,
    message: str,
) -> CommitInfo:
    """Makes what is not there yet, looks at the card that is, and commits."""
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    parent = api.repo_info(repo_id, revision=revision).sha
    if not overwrite_card:
        check_card(api, repo_id, parent, content_of(planned.goes[CARD]))
    operations = [CommitOperationAdd(name, what) for name, what in planned.goes.items()]
    # With a parent, a card that somebody writes in the meantime makes the commit fail.
    return api.create_commit(repo_id, operations, commit_message=message, revision=revision, parent_commit=parent)


def check_card(api: HfApi, repo_id: str, revision: str | None, ours: str) -> None:
    """Refuses to replace a card that is not as `make_card` made it."""
    try:
        file = hf_hub_download(repo_id, CARD, revision=revision, token=api.token)
    except EntryNotFoundError:
        return
    theirs = content_of(Path(file))
    if theirs != ours and not is_generated(theirs):
        raise ValueError(
            f"the {CARD} of {repo_id} was written or changed by hand, and would be lost: save it as {CARD} beside the "
            "model, with what the new one says, and pass --overwrite-card (`overwrite_card=True`)."
        )


def told_as_os_error(repo_id: str, act: Callable[[], Any]) -> Any:
    """What the client raises has many kinds: here what is not a `ValueError` is an `OSError`."""
    try:
        return act()
    except (ValueError, OSError):
        raise
    except Exception as error:
        cause = f": {error.__cause__}" if error.__cause__ else ""
        raise OSError(
            f"{repo_id} could not be pushed: {error}{cause}. Try again; large files are sent once."
        ) from error


def content_of(what: Path | bytes) -> str:
    """As text, with the line ends of any system."""
    return (what if isinstance(what, bytes) else what.read_bytes()).decode().replace("\r\n", "\n")


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
