"""OpenAI's request for embeddings, checked, and the response."""

import base64
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from grace_exp.encoder.serving.answers import Answer

_TOKEN_IDS = (
    "this server takes text, not token ids, because its prompts are built around the text. Send text: with "
    "langchain-openai set check_embedding_ctx_length=False"
)


class RequestError(Exception):
    """A request that cannot be answered.

    Attributes:
        status: HTTP status.
        param: The field at fault.
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None) -> None:
        """Store the error for the client."""
        super().__init__(message)
        self.status = status
        self.param = param


class EmbeddingRequest(BaseModel):
    """The body of `POST /v1/embeddings`; OpenAI's other fields are ignored.

    Attributes:
        input: The texts.
        model: The model's name, optionally followed by `:query` or `:document`.
        encoding_format: Numbers, or their float32 bytes in base64.
        dimensions: Keep only so many first dimensions.
        rationales: Whether to return the rationales too.
        max_tokens: Token limit of a rationale; None: the model's own; 0: no rationales.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    input: list[str] = Field(min_length=1)
    model: str
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    rationales: bool = False
    max_tokens: int | None = Field(default=None, ge=0)


def parse_request(body: Any, most_texts: int) -> EmbeddingRequest:
    """Return the request in a JSON value.

    Args:
        body: The parsed body.
        most_texts: The most texts of one request.

    Raises:
        RequestError: The value is not a valid request.
    """
    if not isinstance(body, dict):
        raise RequestError("the body is not a JSON object")
    given = body.get("input")
    if isinstance(given, str):
        body = {**body, "input": [given]}
    elif isinstance(given, list) and given and all(isinstance(part, int | list) for part in given):
        raise RequestError(_TOKEN_IDS, param="input")
    try:
        request = EmbeddingRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(map(str, first["loc"]))
        raise RequestError(f"{param}: {first['msg']}", param=param) from None
    if len(request.input) > most_texts:
        raise RequestError(f"input has {len(request.input)} texts; {most_texts} is the most", param="input")
    return request


def response(request: EmbeddingRequest, answer: Answer, prompt_tokens: int) -> dict[str, Any]:
    """Return the answer in OpenAI's format; `total_tokens` includes those of the rationales."""
    data = []
    for row, vector in enumerate(answer.vectors):
        values = np.ascontiguousarray(vector, dtype="<f4")
        embedding = (
            values.tolist() if request.encoding_format == "float" else base64.b64encode(values.tobytes()).decode()
        )
        item: dict[str, Any] = {"object": "embedding", "index": row, "embedding": embedding}
        if request.rationales:
            item["rationales"] = answer.rationales[row]
        data.append(item)
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens + sum(answer.rationale_tokens)}
    return {"object": "list", "data": data, "model": request.model, "usage": usage}
