"""The limits of the server of embeddings."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True)
class ServeConfig:
    """Limits and waits of job=serve; batches hold up to `job.encode.batch_size` texts."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]+$")] = "grace"
    """What clients call the model: NAME, NAME:query and NAME:document; NAME alone uses the role `job.role`."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Environment variable with the key that clients must send; null: no key is needed."""
    gather_ms: Annotated[float, Field(ge=0)] = 5.0
    """How long an idle server waits for further requests before it starts a batch, in milliseconds."""
    queue_texts: Annotated[int, Field(ge=1)] = 1024
    """The most texts that may wait; further requests are answered with 429 and Retry-After."""
    request_texts: Annotated[int, Field(ge=1)] = 2048
    """The most texts in one request; a larger one is answered with 400."""
    body_mib: Annotated[float, Field(gt=0)] = 16.0
    """The largest body of a request, in MiB; a larger one is answered with 413."""
    timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """The longest time from a request's arrival to its answer, in seconds; later it is answered with 504."""
    shutdown_s: Annotated[int, Field(ge=1)] = 300
    """After SIGTERM or Ctrl-C the server accepts no request; it answers the accepted ones within this time, in
    seconds."""
