"""The server's app: transformers' routes with our handlers."""

from typing import Any

import transformers
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.systemone import SystemOneHandler
from transformers.cli.serving.transcription import TranscriptionHandler

from .handlers import Chats, Completions, Embeddings
from .leaving import LeavingClients
from .manager import BatchState, ServedSllm


class OneModel(ModelManager):
    """Lists the model that it serves, and not what else is in the Hub's cache."""

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:  # type: ignore[override]
        return [{"id": self.force_model, "object": "model", "created": 0, "owned_by": "hf_sllm"}]


def build_app(
    model: str, device: str, dtype: str | None, batch_size: int, chat_template_kwargs: dict[str, Any]
) -> LeavingClients:
    """Loads a model and makes the ASGI app that serves it.

    Args:
        model: Path or name, as clients call it.
        device, dtype: Of the weights.
        batch_size: Rows of the batch.
        chat_template_kwargs: What chats are rendered with, unless a request says otherwise.
    """
    # The server looks a class up in transformers' namespace, by the name that the checkpoint's config gives.
    transformers.SllmForCausalLM = ServedSllm  # type: ignore[attr-defined]
    models, state = OneModel(device=device, dtype=dtype, force_model=model), BatchState(batch_size)
    given: dict[str, Any] = {"model_manager": models, "generation_state": state}
    app = build_server(
        models,
        Chats(**given, chat_template_kwargs=chat_template_kwargs),
        completion_handler=Completions(**given),
        response_handler=ResponseHandler(**given, chat_template_kwargs=chat_template_kwargs),
        transcription_handler=TranscriptionHandler(models, state),
        systemone_handler=SystemOneHandler(**given, chat_template_kwargs=chat_template_kwargs, decision_config=None),
        generation_state=state,
    )
    embeddings = Embeddings(**given)

    @app.post("/v1/embeddings")
    async def embed(body: dict) -> Any:
        return await embeddings.handle_request(body)

    return LeavingClients(app)
