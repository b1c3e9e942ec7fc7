"""`/v1/embeddings`, as OpenAI's clients speak it."""

import base64
from typing import Annotated, Final

import numpy as np
from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import JSONResponse

from services.router_service.api.disconnect import while_connected
from services.router_service.api.examples import ERRORS
from services.router_service.api.openai_request import openai_words, prompt_of, speakers_of_model
from services.router_service.dependencies import LogIdDep, Resources, ResourcesDep
from services.router_service.embedding import TextEmbedding
from services.router_service.schemas.openai_embeddings import (
    Embedding,
    Embeddings,
    EmbeddingsRequest,
    EmbeddingsUsage,
)
from services.shared.errors import InvalidRequest

router = APIRouter(tags=["openai"], responses=ERRORS)

ENDPOINT: Final = "/v1/embeddings"


@router.post(ENDPOINT, response_model=Embeddings)
async def embed(
    request: Request, body: Annotated[EmbeddingsRequest, Body()], resources: ResourcesDep, request_id: LogIdDep
) -> Response:
    """Texts as vectors: the mean of the last hidden states over all tokens, of length D, not normalised."""
    if (name := body.unsupported()) is not None:
        raise InvalidRequest(
            f"{name[:80]} is not supported here: leave it out.", param=name[:80], code="unsupported_parameter"
        )
    with openai_words(body.model):
        return await while_connected(request, _answer(body, resources, request_id))


async def _answer(body: EmbeddingsRequest, resources: Resources, request_id: str) -> Response:
    embeddings = await resources.embedder.embed(
        [prompt_of(text, resources, param="input") for text in body.input],
        await speakers_of_model(body.model, resources),
        request_id=request_id,
        endpoint=ENDPOINT,
    )
    num_tokens = sum(embedding.num_tokens for embedding in embeddings)
    in_base64 = body.encoding_format == "base64"
    content = Embeddings(
        data=[
            Embedding(index=index, embedding=_in_base64(each) if in_base64 else list(each.states_D))
            for index, each in enumerate(embeddings)
        ],
        model=body.model,
        usage=EmbeddingsUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
    )
    return JSONResponse(content.model_dump())


def _in_base64(embedding: TextEmbedding) -> str:
    return base64.b64encode(np.array(embedding.states_D, dtype="<f4").tobytes()).decode()
