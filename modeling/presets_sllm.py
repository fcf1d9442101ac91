"""Config fields that follow from a language model's config."""

import copy

from transformers import AutoConfig, PreTrainedConfig


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
    """A copy of the config with these layers only; lists with one entry per layer follow."""
    config = copy.deepcopy(text_config)
    total = text_config.num_hidden_layers
    config.num_hidden_layers = len(layers)
    for name in ("layer_types", "no_rope_layers", "attention_layers", "mlp_layer_types"):
        per_layer = getattr(config, name, None)
        if isinstance(per_layer, list) and len(per_layer) == total:
            setattr(config, name, [per_layer[layer] for layer in layers])
    return config
