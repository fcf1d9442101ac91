"""Names of transformers that begin with `_` or are not documented, each with the reason why it is needed.

They may change in any release, so this is the list to look at when another version of transformers is allowed.
`tests/unit/test_private_names.py` holds the code to it: no other such name is used, and none is listed in vain.
"""

import os
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file

PRIVATE_NAMES = {
    # What a class of ours says of itself.
    "_auto_class": "saving a model or a config saves its code too; `register_for_auto_class` sets it from outside",
    "_no_split_modules": "encoder and decoder are no `PreTrainedModel`, and show which of their layers stay whole",
    "_skip_keys_device_placement": "accelerate must not copy the cache to another device at each call",
    "_supports_attention_backend": "the parts take any attention, so the whole does",
    "_supports_flash_attn": "the parts take flash attention, so the whole does",
    "_supports_flex_attn": "the parts take flex attention, so the whole does",
    "_supports_sdpa": "the parts take sdpa, so the whole does",
    "_tied_weights_keys": "which weights are one, here the head and the token embeddings of whichever part owns them",
    "_tp_plan": "how tensor parallelism splits the LM head",
    # Methods that ours override or call.
    "_get_train_sampler": "Trainer's batches are of similar lengths, see `SllmTrainer`",
    "_init_weights": "how new weights begin; transformers calls it for each module",
    "_prefill": "the sentence loop reads the prompt as the token loop does, in chunks if asked",
    "_prepare_cache_for_generation": "the cache that `generate` makes is put into an `SllmCache`",
    "_sample": "`generate` comes to the sentence loop here; `custom_generate` would lose the streamer",
    # What is read of objects that transformers makes.
    "_adapter_model_path": "where `AutoModel` found an adapter; handed on among `adapter_kwargs`",
    "_attn_implementation": "which attention a part runs with decides how its mask is made",
    "_from_model_config": "a generation config that was made of a model's loses `max_sentences` when it is read again",
    "_hf_peft_config_loaded": "whether `load_adapter` was called; merging takes the adapters out again",
    "_is_quantized": "a part's config is copied of a quantised backbone's, and the part is float",
    "_is_stateful": "whether layers pass a state along, which no mask stops; see `validation_backbone`",
    "_pad_token_tensor": "the padding that `generate` settled on, by default an end-of-text token",
    "_tokenizer": "the fast tokenizer inside a tokenizer, from which the server's streamer decodes",
    # Methods of the server that ours override or call.
    "_enqueue": "hands what was written to the client that waits for it",
    "_non_streaming": "several answers to a request are asked for at once",
    "_resolve_model": "finds the model that a request names",
    "_StreamError": "tells a client that reads along that its text failed",
    "_validate_request": "refuses what the server would ignore",
    # What is asked of the Hub's cache.
    "_raise_exceptions_for_missing_entries": "a file that may be absent is asked for without an exception",
}

# Modules that the reference of transformers does not describe, or describes as internal.
PRIVATE_MODULES = {
    "transformers.cli.serve": "the OpenAI-compatible server, which is told of SLLMs",
    "transformers.cli.serving.chat_completion": "how chats are answered, which ours extends",
    "transformers.cli.serving.completion": "how texts are continued, which ours extends",
    "transformers.cli.serving.model_manager": "loads the model that it serves",
    "transformers.cli.serving.response": "how the newer interface is answered",
    "transformers.cli.serving.server": "`build_server`: the application with its routes",
    "transformers.cli.serving.systemone": "one of the handlers that `build_server` asks for",
    "transformers.cli.serving.transcription": "one of the handlers that `build_server` asks for",
    "transformers.cli.serving.utils": "what handlers, streamers and the manager of generations inherit",
    "transformers.configuration_utils": "`SubConfigSpec`: how a composite declares its parts",
    "transformers.dynamic_module_utils": "`custom_object_save`, `get_relative_import_files`: the code beside weights",
    "transformers.generation.utils": "`GenerateDecoderOnlyOutput`: what a loop returns",
    "transformers.modeling_utils": "`ALL_ATTENTION_FUNCTIONS`: the attention kernels by name",
    "transformers.pytorch_utils": "`Conv1D`: GPT-2's linear layers, which adapters go into",
    "transformers.trainer_callback": "`ExportableState`, `TrainerState`: what a run resumes from",
    "transformers.trainer_pt_utils": "`get_length_grouped_indices`: batches of similar lengths",
    "transformers.utils.hub": "`cached_file` and its kin: a file of a checkpoint, wherever it lies",
    "transformers.utils.type_validators": "`interval`, `positive_int_field`: what a config's field may be",
}


def attention_implementation(config: PreTrainedConfig) -> str:
    """Which attention a model runs with, e.g. `"eager"`, `"sdpa"`, `"flash_attention_2"` or `"flex_attention"`."""
    return config._attn_implementation or "eager"


def carries_state(model_class: Any) -> bool:
    """Whether a model's class says that layers pass a state from one position to the next, as recurrent ones do."""
    return bool(getattr(model_class, "_is_stateful", False))


def find_file(name: str | os.PathLike, file: str, **hub: Any) -> str | None:
    """Where a file of a checkpoint lies, downloaded if it is on the Hub; `None` if it has no such file.

    Args:
        name: The checkpoint's folder, or its name on the Hub.
        file: The file's name.
        hub: `revision`, `token` and what else says where on the Hub it is.
    """
    return cached_file(name, file, **hub, _raise_exceptions_for_missing_entries=False)
