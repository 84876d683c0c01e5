"""How the server of embeddings listens, and what it refuses."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from grace_exp.config.base import STRICT


@dataclass(config=STRICT, frozen=True, kw_only=True)
class ServeConfig:
    """Limits and waits of job=serve; batches hold up to `job.encode.batch_size` texts."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]+$")] = "grace"
    """What clients call the model: NAME, NAME:query and NAME:document; NAME alone is in the role `job.role`."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Environment variable that holds the key clients must send; null: no key is asked for."""
    gather_ms: Annotated[float, Field(ge=0)] = 5.0
    """How long an idle server waits for further requests before it begins a batch, milliseconds."""
    queue_texts: Annotated[int, Field(ge=1)] = 1024
    """Texts that may wait; beyond it requests are answered with 429 and Retry-After."""
    request_texts: Annotated[int, Field(ge=1)] = 2048
    """Texts of one request; beyond it 400."""
    body_mib: Annotated[float, Field(gt=0)] = 16.0
    """Size of one request's body, MiB; beyond it 413."""
    timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """From arrival to answer, seconds; beyond it 504."""
    shutdown_s: Annotated[int, Field(ge=1)] = 300
    """After SIGTERM or Ctrl-C no request is accepted, and those accepted have this long to be answered, seconds."""
