"""Beginning from a pretrained language model: which weights go where."""

import copy
import os
from typing import Any

import torch
from huggingface_hub import resolve_revision
from torch import nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from .backbone_layers import copy_sentence_vae, copy_weights, fields_of_sentence_vae, text_tower
from .backbone_quantized import is_float, is_quantized
from .sentence_segmentation import boundary_tokens, end_tokens
from .transformers_private import attention_implementation
from .validation_checkpoint import HUB_KEYWORDS, check_adapter, check_checkpoint, weight_files
from .validation_loading import (
    check_device_map,
    check_dtype,
    check_given_model,
    check_language_model,
    check_name,
    check_saving,
    told_where,
)

logger = logging.get_logger(__name__)

# The keywords that say where on the Hub a backbone is found, but for its `revision`.
PLACE_KEYWORDS = ("token", "cache_dir", "local_files_only")


class FromBackboneMixin:
    """Adds `from_backbone` to a model, and to `from_pretrained` that weights are checked before they are read.

    An adapter's folder need not hold them."""

    config_class: Any

    # What `from_backbone` was given, if the backbone has a name, and its commit on the Hub: enough to begin again.
    backbone_origin: dict[str, Any] | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As any model's. A config with a `backbone_origin` comes with adapters and without weights: the model is made
        of its backbone anew, and what a backbone does not give has to be in the adapters.

        `revision` is then that of the adapters: the commit of the backbone is stored with them. `token`, `cache_dir`
        and `local_files_only` are for both."""
        config = kwargs.pop("config", None)
        by_name = pretrained_model_name_or_path is not None and kwargs.get("gguf_file") is None
        if config is None and by_name:
            hub_kwargs = {name: kwargs[name] for name in HUB_KEYWORDS if name in kwargs}
            with told_where("pretrained_model_name_or_path", pretrained_model_name_or_path, kwargs.get("subfolder")):
                config = cls.config_class.from_pretrained(pretrained_model_name_or_path, **hub_kwargs)
        origin = getattr(config, "backbone_origin", None)
        places = {name: kwargs[name] for name in PLACE_KEYWORDS if kwargs.get(name) is not None}
        adapter_kwargs = {**(kwargs.get("adapter_kwargs") or {})}
        if origin is not None:
            of_adapter = {"revision": kwargs["revision"]} if kwargs.get("revision") else {}
            adapter_kwargs = {**places, **of_adapter, **adapter_kwargs}
        # Where `AutoModel` found an adapter beside the model, or in place of it.
        adapter = adapter_kwargs.pop("_adapter_model_path", pretrained_model_name_or_path if origin else None)
        if adapter is not None:
            check_adapter(adapter, adapter_kwargs)
        if origin is None:
            if pretrained_model_name_or_path is not None:
                check_checkpoint(cls, pretrained_model_name_or_path, config, kwargs)
                kwargs["use_safetensors"] = True
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)  # type: ignore[misc]
        made = cls.from_origin(config, **places)
        # By way of its state dict, so that what else the call asks for (dtype, device map) is done as ever.
        kwargs = {"config": made.config, "state_dict": made.state_dict(), **kwargs}
        kwargs.pop("adapter_kwargs", None)
        model = super().from_pretrained(None, *model_args, **kwargs)  # type: ignore[misc]
        model.load_adapter(adapter, adapter_kwargs=adapter_kwargs)  # a checkpoint's lies below the config
        return model.eval()

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As any model's; a quantised one that could not be read back is refused."""
        check_saving(self)
        settings = getattr(self, "generation_config", None)
        if getattr(settings, "max_sentences", None) is not None:
            settings._from_model_config = False  # such a one is made anew at loading, and would lose it
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]

    @classmethod
    @torch.no_grad()
    def from_origin(cls, config: Any, **places: Any) -> Any:
        """What adapters of a named backbone adapt: made of that backbone anew, by the config saved with them.

        Args:
            config: Has the `backbone_origin`.
            places: `token`, `cache_dir` and `local_files_only`, as in `from_pretrained`.

        Raises:
            OSError: If the backbone is not at hand; the message says what to do.
        """
        origin = config.backbone_origin
        config = copy.deepcopy(config)
        config.backbone_origin = None  # with weights of its own, it is a model like any other
        model: Any = cls(config)  # type: ignore[call-arg]
        name, hub = origin["name_or_path"], {**places, "revision": origin.get("commit")}
        try:
            weight_files(name, config, hub)  # whoever made the adapters named it: no pickle
            backbone = AutoModelForCausalLM.from_pretrained(name, dtype="auto", use_safetensors=True, **hub)
        except OSError as error:
            commit = origin.get("commit")
            at = f" --revision {commit}" if commit else ""
            raise OSError(
                f"`backbone_origin` is {name!r}{f' at commit {commit}' if commit else ''}: the backbone of these "
                f"adapters, and it is not at hand. If it is on the Hub, run `hf download {name}{at}`, with "
                "`token` if it is gated. If it lies elsewhere, write its folder as `backbone_origin.name_or_path` "
                f"into the adapters' config.json, and null as the commit. ({error})"
            ) from error
        copy_weights(model, backbone, origin["encoder_layers"], origin["decoder_layers"])
        model.backbone_origin = origin
        return model

    @classmethod
    @torch.no_grad()
    def from_backbone(
        cls,
        backbone: str | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        encoder_layers: int | list[int] | None = None,
        decoder_layers: int | list[int] | None = None,
        unit: str = "sentence",
        preset: str = "default",
        sentence_vae: str | PreTrainedModel | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        attn_implementation: str | dict[str, str] | None = None,
        trust_remote_code: bool | None = None,
        quantization_config: Any = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Wraps a causal language model.

        The embeddings, the LM head and the backbone are the model's own; the encoder and the decoder begin as copies
        of some of its layers. What is new, the maps to and from latents, has to be trained. A sentence VAE has copies
        of embeddings and head, and no backbone.

        Args:
            backbone: A name or path for `AutoModelForCausalLM.from_pretrained`, or the model, which is then shared.
            tokenizer: Shows which tokens close a sentence; by default the backbone's. Not needed where
                `boundary_token_ids` is given.
            encoder_layers, decoder_layers: See `SentenceVaeConfig.from_text_config`.
            unit: `"sentence"` or `"clause"`, see `boundary_tokens`.
            preset: `"default"`, or `"paper"` for `SentenceVaeConfig.paper`.
            sentence_vae: A trained `SentenceVaeModel`, or its name or path. It gives encoder and decoder, the token
                embeddings that both read, the LM head, and the fields of the config that describe these. `num_latents`
                may be a multiple of its own.
            dtype: A floating-point type of all parts, by default that of the backbone, which `"auto"` is too. A
                backbone that is a model is converted.
            device_map: Puts the backbone on one device, and all other parts with it. Several devices are for
                `from_pretrained`.
            attn_implementation: Of all parts, the backbone's if it is a model too. A mapping gives each its own, by
                the fields of the config (`text_config`, `sentence_encoder_config`, `sentence_decoder_config`).
            trust_remote_code: Whether to run the code of a backbone that transformers does not have.
            quantization_config: Quantises the linear layers of the backbone. All other parts are float.
            revision, token, cache_dir, local_files_only: Where on the Hub the backbone is, as in `from_pretrained`. Of
                a backbone that is a model, `revision` says at which it was loaded, by default at the newest known
                here.
            kwargs: Fields of the config.

        Raises:
            TypeError: If a keyword is no field of the config, or the backbone is no causal language model.
            ValueError: If a field, `unit`, `preset` or what says how to load cannot be.
            OSError: If there is no backbone of this name or path.
        """
        if preset not in ("default", "paper"):
            raise ValueError(f'`preset` is {preset!r}: it must be "default" or "paper".')
        if isinstance(sentence_vae, str):
            sentence_vae = AutoModel.from_pretrained(sentence_vae)
        if sentence_vae is not None:
            kwargs = {**fields_of_sentence_vae(sentence_vae.config), **kwargs}
        hub: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        check_dtype(dtype)
        check_device_map(device_map)
        # What a model that is given has been loaded with already.
        loading = {"device_map": device_map, "quantization_config": quantization_config}
        loading["trust_remote_code"] = trust_remote_code
        if isinstance(backbone, nn.Module):
            check_given_model(backbone, dtype, loading)
            if dtype not in (None, "auto"):
                cast(backbone, dtype)
            revision = commit_of(getattr(backbone, "name_or_path", ""), revision, **{**hub, "local_files_only": True})
        else:
            check_name(backbone)
            revision = commit_of(backbone, revision, **hub) or revision
            with told_where("backbone", backbone):
                if tokenizer is None and "boundary_token_ids" not in kwargs:
                    code = {"trust_remote_code": trust_remote_code}
                    tokenizer = AutoTokenizer.from_pretrained(backbone, revision=revision, **code, **hub)
                loading = {"dtype": dtype, "attn_implementation": attn_implementation, **loading}
                loading = {name: value for name, value in loading.items() if value is not None}
                if isinstance(attn_implementation, dict):
                    loading["attn_implementation"] = attn_implementation.get("text_config")
                backbone = AutoModelForCausalLM.from_pretrained(backbone, revision=revision, **loading, **hub)
        check_language_model(backbone)
        if trust_remote_code:
            register_code(backbone)
        if "boundary_token_ids" not in kwargs:
            if tokenizer is None:
                raise TypeError("pass `tokenizer`, which shows what tokens close a sentence, or `boundary_token_ids`.")
            kwargs = {**boundary_tokens(tokenizer, unit), **kwargs}

        text_config = backbone.config.get_text_config(decoder=True)
        ends = end_tokens(tokenizer, text_config, backbone.generation_config)
        kwargs = {**eos_field(ends), **kwargs}
        make_config = cls.config_class.paper if preset == "paper" else cls.config_class.from_text_config
        given = {"encoder_layers": encoder_layers, "decoder_layers": decoder_layers}
        config = make_config(
            text_config,
            **{name: layers for name, layers in given.items() if layers is not None},
            lm_head_bias=getattr(backbone.get_output_embeddings(), "bias", None) is not None,
            **kwargs,
        )
        model: Any = cls(config)  # type: ignore[call-arg]
        model = cast(model.to(backbone.device), backbone.dtype)
        model.generation_config = copy.deepcopy(backbone.generation_config)
        model.generation_config.update(**eos_field(ends))  # a chat is to end with its turn
        not_copied = copy_weights(model, backbone, encoder_layers, decoder_layers)
        if attn_implementation is None:  # then parts of the backbone's kind do as it does
            own, kind = attention_implementation(text_config), text_config.model_type
            parts = ("sentence_encoder_config", "sentence_decoder_config")
            attn_implementation = {name: own for name in parts if getattr(model.config, name).model_type == kind}
        model.set_attn_implementation(attn_implementation)
        if sentence_vae is not None:
            copy_sentence_vae(model, sentence_vae)
        elif not_copied:
            logger.warning_once(
                f"Not copied from the backbone, a {text_config.model_type!r} model of {text_config.num_hidden_layers} "
                f"layers, and random until they are trained: {'; '.join(not_copied)}."
            )
        is_found_again = backbone.name_or_path and text_tower(backbone) is backbone.base_model
        if sentence_vae is None and is_found_again and not is_quantized(backbone):
            model.backbone_origin = {"name_or_path": backbone.name_or_path, "commit": revision, **given}
        return model.train(backbone.training)


def eos_field(ends: list[int]) -> dict[str, Any]:
    """The field of a config that says which tokens end a text, if any does."""
    return {"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {}


def cast(model: PreTrainedModel, dtype: str | torch.dtype) -> PreTrainedModel:
    """Gives all weights that are float another type; not what rotary positions are computed from, as `to` would. The
    config says so, for each part."""
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    for parameter in model.parameters():
        if is_float(parameter):
            parameter.data = parameter.data.to(dtype)
    for config in (model.config, *(getattr(model.config, name) for name in model.config.sub_configs)):
        config.dtype = dtype
    return model


def register_code(backbone: PreTrainedModel) -> None:
    """Makes known to the auto classes of this process an architecture whose code came with a checkpoint."""
    config = backbone.config.get_text_config(decoder=True)
    if type(config) not in MODEL_MAPPING:
        AutoConfig.register(config.model_type, type(config), exist_ok=True)
        AutoModel.register(type(config), type(backbone.base_model), exist_ok=True)


def commit_of(name: str | os.PathLike, revision: str | None, **hub: Any) -> str | None:
    """The commit of a repository on the Hub to which a revision leads; `None` for a folder, or if it is not known."""
    if not str(name) or os.path.exists(name):
        return None
    try:
        return resolve_revision(str(name), revision=revision, **hub).resolved
    except Exception:  # of many kinds; loading says better what is wrong
        return None
