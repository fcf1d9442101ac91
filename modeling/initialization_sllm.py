"""Beginning from a pretrained language model: which weights go where."""

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from .presets_sllm import select_layers
from .segmentation_sllm import boundary_tokens


@torch.no_grad()
def initialize_from_backbone(
    cls, backbone, tokenizer, encoder_layers, decoder_layers, unit: str, preset: str, fields: dict
):
    """What `SllmForCausalLM.from_backbone` and `SentenceVaeModel.from_backbone` do; see there."""
    if preset not in ("default", "paper"):
        raise ValueError(f'`preset` is {preset!r}: it must be "default" or "paper".')
    if isinstance(backbone, str) or not isinstance(backbone, nn.Module):
        if tokenizer is None and "boundary_token_ids" not in fields:
            tokenizer = AutoTokenizer.from_pretrained(backbone)
        backbone = AutoModelForCausalLM.from_pretrained(backbone)
    if not isinstance(backbone, PreTrainedModel) or backbone.get_output_embeddings() is None:
        raise TypeError(f"`backbone` is a {type(backbone).__name__}: it must be a transformers causal language model.")
    if "boundary_token_ids" not in fields:
        if tokenizer is None:
            raise TypeError("pass `tokenizer`, which shows what tokens close a sentence, or `boundary_token_ids`.")
        fields = {**boundary_tokens(tokenizer, unit), **fields}

    head = backbone.get_output_embeddings()
    text_config = backbone.config.get_text_config(decoder=True)
    make_config = cls.config_class.paper if preset == "paper" else cls.config_class.from_text_config
    chosen = {"encoder_layers": encoder_layers, "decoder_layers": decoder_layers}
    config = make_config(
        text_config,
        **{name: layers for name, layers in chosen.items() if layers is not None},
        lm_head_bias=getattr(head, "bias", None) is not None,
        **fields,
    )
    model = cls(config).to(device=backbone.device, dtype=backbone.dtype)
    model.generation_config = backbone.generation_config
    sizes = [config.sentence_encoder_config.num_hidden_layers, config.sentence_decoder_config.num_hidden_layers]
    layers = select_layers(text_config, *(given or size for given, size in zip(chosen.values(), sizes, strict=True)))
    copy_weights(model, backbone, *layers)
    return model


def copy_weights(
    model: PreTrainedModel, backbone: PreTrainedModel, encoder_layers: list[int], decoder_layers: list[int]
) -> None:
    """Embeddings, head and layers of a backbone into a model that was built for it."""
    source = backbone.base_model
    table, head = source.get_input_embeddings(), backbone.get_output_embeddings()
    body = getattr(model, "model", model)
    if hasattr(body, "language_model"):
        body.language_model = source
        model.config.text_config = source.config
    else:
        model.get_input_embeddings().load_state_dict(table.state_dict())
    model.lm_head.load_state_dict(head.state_dict())
    model.tie_weights()
    encoder, decoder = body.sentence_encoder, body.sentence_decoder
    copy_layers(source, encoder.model, encoder_layers)
    copy_layers(source, decoder.model, decoder_layers)

    # What enters a pretrained transformer has the scale that its token embeddings have.
    scale = table.weight.float().pow(2).mean().sqrt()
    maps = [decoder.latent_prefix, *([body.latent_input] if hasattr(body, "latent_input") else [])]
    for linear in maps:
        linear.weight.mul_(scale / (linear.weight.float().pow(2).mean() * linear.in_features).sqrt())
    queries = getattr(encoder, "latent_queries", None)
    if queries is not None:
        queries.weight.mul_(scale / queries.weight.float().pow(2).mean().sqrt())


def copy_layers(source: nn.Module, target: nn.Module, layers: list[int]) -> None:
    """Copies the chosen layers, and all that is not a layer, of a transformer into a smaller one of its kind."""
    if source.config.model_type != target.config.model_type or source.config.hidden_size != target.config.hidden_size:
        return  # another architecture: it stays random
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
