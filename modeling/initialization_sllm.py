"""Beginning from a pretrained language model: which weights go where."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .loading_sllm import HUB_KEYWORDS, check_adapter, check_checkpoint, weight_files
from .presets_sllm import select_layers
from .segmentation_sllm import boundary_tokens


class FromBackboneMixin:
    """Adds `from_backbone` to a model, and to `from_pretrained` that weights are checked before they are read.

    An adapter's folder need not hold them."""

    config_class: Any

    # What `from_backbone` was given, if the backbone has a name: enough to begin again.
    backbone_origin: dict[str, Any] | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As any model's. A config with a `backbone_origin` comes with adapters and without weights: the model is made
        of its backbone anew, and what a backbone does not give has to be in the adapters."""
        config = kwargs.pop("config", None)
        if config is None and pretrained_model_name_or_path is not None:
            hub_kwargs = {name: kwargs[name] for name in HUB_KEYWORDS if name in kwargs}
            config = cls.config_class.from_pretrained(pretrained_model_name_or_path, **hub_kwargs)
        origin = getattr(config, "backbone_origin", None)
        adapter_kwargs = {**(kwargs.get("adapter_kwargs") or {})}
        # Where `AutoModel` found an adapter beside the model, or in place of it.
        adapter = adapter_kwargs.pop("_adapter_model_path", pretrained_model_name_or_path if origin else None)
        if adapter is not None:
            check_adapter(adapter, adapter_kwargs)
        if origin is None:
            if pretrained_model_name_or_path is not None:
                check_checkpoint(cls, pretrained_model_name_or_path, config, kwargs)
                kwargs["use_safetensors"] = True
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)  # type: ignore[misc]
        made = cls.from_origin(config)
        # By way of its state dict, so that what else the call asks for (dtype, device map) is done as ever.
        kwargs = {"config": made.config, "state_dict": made.state_dict(), **kwargs}
        kwargs.pop("adapter_kwargs", None)
        model = super().from_pretrained(None, *model_args, **kwargs)  # type: ignore[misc]
        model.load_adapter(adapter, adapter_kwargs=adapter_kwargs)  # a checkpoint's lies below the config
        return model.eval()

    @classmethod
    @torch.no_grad()
    def from_origin(cls, config: Any) -> Any:
        """What adapters of a named backbone adapt: made of that backbone anew, by the config saved with them."""
        origin = config.backbone_origin
        config = copy.deepcopy(config)
        config.backbone_origin = None  # with weights of its own, it is a model like any other
        model: Any = cls(config)  # type: ignore[call-arg]
        weight_files(origin["name_or_path"], config, {})  # whoever made the adapters named it: no pickle
        backbone = AutoModelForCausalLM.from_pretrained(origin["name_or_path"], dtype="auto", use_safetensors=True)
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
            kwargs: Fields of the config.

        Raises:
            TypeError: If a keyword is no field of the config, or the backbone is no causal language model.
            ValueError: If a field, `unit` or `preset` cannot be.
        """
        if preset not in ("default", "paper"):
            raise ValueError(f'`preset` is {preset!r}: it must be "default" or "paper".')
        if isinstance(sentence_vae, str):
            sentence_vae = AutoModel.from_pretrained(sentence_vae)
        if sentence_vae is not None:
            kwargs = {**fields_of_sentence_vae(sentence_vae.config), **kwargs}
        if not isinstance(backbone, nn.Module):
            if tokenizer is None and "boundary_token_ids" not in kwargs:
                tokenizer = AutoTokenizer.from_pretrained(backbone)
            backbone = AutoModelForCausalLM.from_pretrained(backbone)
        if not isinstance(backbone, PreTrainedModel) or backbone.get_output_embeddings() is None:
            raise TypeError(f"`backbone` is a {type(backbone).__name__}: it must be a causal language model.")
        if "boundary_token_ids" not in kwargs:
            if tokenizer is None:
                raise TypeError("pass `tokenizer`, which shows what tokens close a sentence, or `boundary_token_ids`.")
            kwargs = {**boundary_tokens(tokenizer, unit), **kwargs}

        text_config = backbone.config.get_text_config(decoder=True)
        make_config = cls.config_class.paper if preset == "paper" else cls.config_class.from_text_config
        given = {"encoder_layers": encoder_layers, "decoder_layers": decoder_layers}
        config = make_config(
            text_config,
            **{name: layers for name, layers in given.items() if layers is not None},
            lm_head_bias=getattr(backbone.get_output_embeddings(), "bias", None) is not None,
            **kwargs,
        )
        model: Any = cls(config)  # type: ignore[call-arg]
        model = model.to(backbone.device)
        for parameter in model.parameters():  # and not what rotary positions are computed from, as `to` would
            parameter.data = parameter.data.to(backbone.dtype)
        model.generation_config = copy.deepcopy(backbone.generation_config)
        copy_weights(model, backbone, encoder_layers, decoder_layers)
        if sentence_vae is not None:
            copy_sentence_vae(model, sentence_vae)
        elif backbone.name_or_path:
            model.backbone_origin = {"name_or_path": backbone.name_or_path, **given}
        return model.train(backbone.training)


def copy_weights(
    model: PreTrainedModel,
    backbone: PreTrainedModel,
    encoder_layers: int | list[int] | None,
    decoder_layers: int | list[int] | None,
) -> None:
    """Embeddings, head and layers of a backbone into a model that was built for it."""
    source = backbone.base_model
    body = getattr(model, "model", model)
    if hasattr(body, "language_model"):
        body.language_model = source
        model.config.text_config = source.config
    else:
        model.get_input_embeddings().load_state_dict(source.get_input_embeddings().state_dict())
    model.lm_head.load_state_dict(backbone.get_output_embeddings().state_dict())
    model.tie_weights()
    encoder, decoder = body.sentence_encoder, body.sentence_decoder
    for part, layers, which in ((encoder, encoder_layers, 0), (decoder, decoder_layers, 1)):
        if is_smaller_kind(part.model, source):
            layers = part.model.config.num_hidden_layers if layers is None else layers
            copy_layers(source, part.model, select_layers(source.config, layers, layers)[which])

    # What enters a pretrained transformer has the scale that its token embeddings have.
    table = source.get_input_embeddings()
    some = torch.arange(min(1000, table.num_embeddings), device=backbone.device)
    scale = table(some).float().pow(2).mean().sqrt()
    for linear in (decoder.latent_prefix, getattr(body, "latent_input", None)):
        if linear is not None:
            linear.weight.mul_(scale / (linear.weight.float().pow(2).mean() * linear.in_features).sqrt())
    queries = getattr(encoder, "latent_queries", None)
    if queries is not None:
        queries.weight.mul_(scale / queries.weight.float().pow(2).mean().sqrt())


def fields_of_sentence_vae(config: Any) -> dict[str, Any]:
    """The fields that an SLLM takes over from the config of its sentence VAE."""
    if config.model_type != "sentence_vae":
        raise ValueError(f"`sentence_vae` is a {config.model_type!r} model: it must be a sentence VAE.")
    of_backbone = {"pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings", "lm_head_bias"}
    own = [name for name in type(config).__annotations__ if name not in {*of_backbone, "decoder_context_length"}]
    return {name: copy.deepcopy(getattr(config, name)) for name in own}


@torch.no_grad()
def copy_sentence_vae(model: PreTrainedModel, sentence_vae: PreTrainedModel) -> None:
    """Encoder, decoder, token embeddings and head of a sentence VAE into an SLLM, or into another sentence VAE.

    Raises:
        ValueError: If the weights have other shapes. The model may have a multiple of the latents: then each query of
            the encoder begins several, which stand side by side.
    """
    body = getattr(model, "model", model)
    for name in ("sentence_encoder", "sentence_decoder"):
        part = getattr(body, name)
        given = getattr(sentence_vae, name).state_dict()
        queries = given.get("latent_queries.weight")
        if queries is not None:
            times, rest = divmod(model.config.num_latents, len(queries))
            if rest:
                raise ValueError(
                    f"`num_latents` is {model.config.num_latents}, and the sentence VAE has {len(queries)}: it must "
                    "be a multiple of that."
                )
            given["latent_queries.weight"] = queries.repeat_interleave(times, 0)
        for key, value in part.state_dict().items():
            if given[key].shape != value.shape:
                raise ValueError(
                    f"`{name}.{key}` is of shape {tuple(value.shape)}, and the sentence VAE's of shape "
                    f"{tuple(given[key].shape)}: `num_latents` alone may be another one than its own."
                )
        part.load_state_dict({key: given[key] for key in part.state_dict()})
    body.get_input_embeddings().load_state_dict(sentence_vae.get_input_embeddings().state_dict())
    if hasattr(model, "lm_head"):
        model.lm_head.load_state_dict(sentence_vae.lm_head.state_dict())
    model.tie_weights()


def is_smaller_kind(model: PreTrainedModel, source: PreTrainedModel) -> bool:
    """Whether a model is the source with fewer layers, so that layers can be copied; else it stays random."""
    if model.config.model_type != source.config.model_type:
        return False
    available = {key: value.shape for key, value in source.state_dict().items()}
    return model.config.num_hidden_layers <= source.config.num_hidden_layers and all(
        available.get(key) == value.shape for key, value in model.state_dict().items()
    )


def copy_layers(source: nn.Module, target: nn.Module, layers: list[int]) -> None:
    """Copies the chosen layers, and all that is not a layer, of a transformer into a smaller one of its kind."""
    name = next(
        name
        for name, module in source.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == source.config.num_hidden_layers
    )
    available = source.state_dict()
    renamed = {}
    for key in target.state_dict():
        origin = key
        if key.startswith(f"{name}."):
            index, rest = key[len(name) + 1 :].split(".", 1)
            origin = f"{name}.{layers[int(index)]}.{rest}"
        if origin in available:
            renamed[key] = available[origin]
    target.load_state_dict(renamed, strict=False)
