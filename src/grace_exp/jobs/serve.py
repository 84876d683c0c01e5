"""Serve embeddings over HTTP until a signal ends it."""

import logging
import os
import signal
import socket
from functools import partial
from pathlib import Path

import torch

from grace_exp.config.compose import to_dict
from grace_exp.config.root import GraceConfig
from grace_exp.encoder.modes import role_of
from grace_exp.encoder.serving.answers import Answers
from grace_exp.errors import MissingResourceError
from grace_exp.jobs.processes import processes
from grace_exp.jobs.run_encoder import build_encoder
from grace_exp.jobs.terminal import our_console
from grace_exp.tracking.provenance import write_provenance


def serve(config: GraceConfig) -> dict[str, float]:
    """Load the encoder and answer requests; SIGTERM and Ctrl-C end the server after the last accepted request.

    Returns:
        `serve/requests`: number of requests that were answered with embeddings.

    Raises:
        MissingResourceError: The model does not exist, or the port is taken.
    """
    import uvicorn

    from grace_exp.encoder.serving.app import EmbeddingServer

    job = config.job
    listening = _listen(job.host, job.port)
    with processes(config.hardware) as device, listening:
        console = our_console()
        write_provenance(Path(config.run_dir), to_dict(config), {})
        encoder = build_encoder(config, device)
        bf16 = config.hardware.precision == "bf16-mixed" and job.model is None
        precision = partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=bf16)
        key = os.environ.get(job.serve.api_key_env) if job.serve.api_key_env else None
        answers = Answers(encoder, job.encode, config.seed, precision)
        server = EmbeddingServer(answers, job.serve, role=role_of(job.role, None), api_key=key)
        settings = uvicorn.Config(
            server.app,
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            timeout_graceful_shutdown=job.serve.shutdown_s,
        )
        # uvicorn sends the signal again after its shutdown; these handlers then ignore it.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: None)
        host, port = listening.getsockname()[:2]
        console.print(
            f"Serving {encoder.name} as {job.serve.name} at http://{host}:{port}/v1", highlight=False, soft_wrap=True
        )
        uvicorn.Server(settings).run(sockets=[listening])
        answered = server.metrics.requests.labels("200")._value.get()
        console.print(f"Stopped after {answered:.0f} answers", highlight=False)
    return {"serve/requests": answered}


def _listen(host: str, port: int) -> socket.socket:
    """Return a bound socket before the model is loaded, so that a taken port is reported at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise MissingResourceError(
            f"job.host={host} job.port={port}: cannot listen there ({error.strerror}); choose another port, or "
            "job.port=0 for a free one"
        ) from error
    return listening
