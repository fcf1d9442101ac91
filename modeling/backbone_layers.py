"""Which layers and weights of a backbone the encoder and the decoder begin with, and the config fields of that."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .backbone_quantized import float_weight, forget_quantization, share_quantization


def fields_of_language_model(
    text_config: PreTrainedConfig, encoder_layers: int | list[int], decoder_layers: int | list[int] | None
) -> dict:
    """Encoder and decoder are language models with some of its layers; special tokens and tied weights are its own."""
    encoder_ids, decoder_ids = select_layers(text_config, encoder_layers, decoder_layers)
    return {
        "sentence_encoder_config": keep_layers(text_config, encoder_ids),
        "sentence_decoder_config": keep_layers(text_config, decoder_ids),
        "tie_word_embeddings": bool(getattr(text_config, "tie_word_embeddings", False)),
        **{name: getattr(text_config, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
    }


def paper_fields(text_config: PreTrainedConfig, decoder_layers: int, max_sentence_length: int) -> dict:
    """The architecture of arXiv 2408.00655, section 3: one latent, the normalised sum of the token states; a decoder
    that cross-attends to it and sees the sentence alone; focal loss; a stop head. The decoder's blocks are GPT-2's,
    since few other architectures have cross-attention."""
    return {
        "num_latents": 1,
        "pooling": "sum",
        "conditioning": "cross_attention",
        "decoder_context_length": 0,
        "focal_gamma": 2.0,
        "stop_head": True,
        "sentence_decoder_config": AutoConfig.for_model(
            "gpt2",
            vocab_size=text_config.vocab_size,
            n_embd=text_config.hidden_size,
            n_head=text_config.num_attention_heads,
            n_layer=decoder_layers,
            n_positions=max_sentence_length + 1,
            add_cross_attention=True,
            bos_token_id=None,
            eos_token_id=None,
        ),
    }


def select_layers(
    text_config: PreTrainedConfig, encoder_layers: int | list[int], decoder_layers: int | list[int] | None
) -> tuple[list[int], list[int]]:
    """Indices of the backbone's layers that the encoder and the decoder are made of."""
    total = text_config.num_hidden_layers
    if decoder_layers is None:
        decoder_layers = min(total, max(2, total // 6))
    if isinstance(encoder_layers, int):
        encoder_layers = list(range(encoder_layers))
    if isinstance(decoder_layers, int) and decoder_layers <= total:
        last = decoder_layers // 2
        decoder_layers = [*range(decoder_layers - last), *range(total - last, total)]
    if isinstance(decoder_layers, int):
        raise ValueError(f"`decoder_layers` is {decoder_layers}: the language model has {total} layers.")
    for name, layers in (("encoder_layers", encoder_layers), ("decoder_layers", decoder_layers)):
        if not layers or not all(0 <= layer < total for layer in layers):
            raise ValueError(f"`{name}` selects {layers}: it must select at least one of the layers 0 to {total - 1}.")
    return encoder_layers, decoder_layers


def keep_layers(text_config: PreTrainedConfig, layers: list[int]) -> PreTrainedConfig:
    """A copy of the config with these layers only. Each list with one entry per layer follows; lists that are computed
    from other fields are not in `vars`, and follow by themselves."""
    config = copy.deepcopy(text_config)
    total = text_config.num_hidden_layers
    forget_quantization(config)
    config.num_hidden_layers = len(layers)
    for name, value in vars(text_config).items():
        of_layers = isinstance(value, list) and len(value) == total
        if of_layers and not name.endswith(("token_id", "token_ids", "architectures")):
            setattr(config, name, [value[layer] for layer in layers])
    return config


def text_tower(backbone: PreTrainedModel) -> Any:
    """The transformer of a causal language model; of one that sees or hears, the part that reads text."""
    config = backbone.config.get_text_config(decoder=True)
    if config is backbone.config:
        return backbone.base_model
    towers = (module for module in backbone.base_model.modules() if isinstance(module, PreTrainedModel))
    return next(module for module in towers if module.config.model_type == config.model_type)


def copy_weights(
    model: PreTrainedModel,
    backbone: PreTrainedModel,
    encoder_layers: int | list[int] | None,
    decoder_layers: int | list[int] | None,
) -> list[str]:
    """Embeddings, head and layers of a backbone into a model that was built for it.

    Returns:
        The names of the weights, or the parts, that could not be copied and are random.
    """
    source = text_tower(backbone)
    body = getattr(model, "model", model)
    if hasattr(body, "language_model"):
        body.language_model = source
        model.config.text_config = source.config
        share_quantization(model, backbone)
    else:
        model.get_input_embeddings().load_state_dict(source.get_input_embeddings().state_dict())
    head = backbone.get_output_embeddings()
    model.lm_head.load_state_dict({**head.state_dict(), "weight": float_weight(head, model.lm_head)}, strict=False)
    model.tie_weights()
    encoder, decoder = body.sentence_encoder, body.sentence_decoder
    not_copied: list[str] = []
    for name, layers, which in (("sentence_encoder", encoder_layers, 0), ("sentence_decoder", decoder_layers, 1)):
        part = getattr(body, name).model
        total = part.config.num_hidden_layers
        if part.config.model_type == source.config.model_type and total <= source.config.num_hidden_layers:
            layers = total if layers is None else layers
            missing = copy_layers(source, part, select_layers(source.config, layers, layers)[which])
        else:
            missing = [f"a {part.config.model_type!r} model of {total} layers, all of it"]
        not_copied.extend(f"{name}: {what}" for what in missing)

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
    return not_copied


def copy_layers(source: nn.Module, target: nn.Module, layers: list[int]) -> list[str]:
    """Copies the chosen layers, and all that is not a layer, of a transformer into a smaller one of its kind. The
    copies of quantised layers are float.

    Returns:
        The names of the weights that the source does not have, or has of another shape; these stay as they are.
    """
    name = next(
        name
        for name, module in source.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == source.config.num_hidden_layers
    )
    available, modules, own = source.state_dict(), dict(source.named_modules()), dict(target.named_modules())
    renamed, missing = {}, []
    for key, value in target.state_dict().items():
        origin = key
        if key.startswith(f"{name}."):
            index, rest = key[len(name) + 1 :].split(".", 1)
            origin = f"{name}.{layers[int(index)]}.{rest}"
        given, like = available.get(origin), own.get(key.rpartition(".")[0])
        if key.endswith(".weight") and isinstance(like, nn.Linear | Conv1D):
            module = modules.get(origin.removesuffix(".weight"))
            given = None if module is None else float_weight(module, like)
        if given is not None and given.shape == value.shape:
            renamed[key] = given
        else:
            missing.append(key)
    target.load_state_dict(renamed, strict=False)
    return missing


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
