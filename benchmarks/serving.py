"""Load test of job=serve over loopback: requests per second, p50 and p99, cold and cached, and over a restart.

    python benchmarks/serving.py --requests 64 --clients 16 -- +experiment=demo job.encode.max_tokens=32

Arguments after `--` are settings of job=serve. The cache is a temporary folder.
"""

import argparse
import contextlib
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
from rich.console import Console
from rich.table import Table

from grace_exp.data.wordnet import load_wordnet


@contextlib.contextmanager
def server(settings: list[str], folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a server process, give its address, and end it with SIGTERM."""
    command = [sys.executable, "-m", "grace_exp", "job=serve", "job.port=0", *settings]
    command += [f"hydra.run.dir={folder / 'run'}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "http://" in line:
                yield process, "http://" + line.split("http://")[1].strip()
                break
        else:
            raise RuntimeError("the server did not start")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def load(url: str, texts: list[str], clients: int) -> tuple[list[float], float]:
    """Return the seconds of each request of one text, and of all together."""
    client = openai.OpenAI(base_url=url, api_key="any", max_retries=20, timeout=600)

    def ask(text: str) -> float:
        start = time.perf_counter()
        client.embeddings.create(model="grace", input=text)
        return time.perf_counter() - start

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        seconds = list(pool.map(ask, texts))
    return seconds, time.perf_counter() - start


def load_over_a_restart(settings: list[str], folder: Path, texts: list[str], clients: int) -> int:
    """End the server with SIGTERM during the load, start it again at its port, and return the number of answers."""
    with server(settings, folder) as (process, url), ThreadPoolExecutor(1) as pool:
        port = url.rsplit(":", 1)[1].split("/")[0]
        answers = pool.submit(load, url, texts, clients)
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        process.wait(120)
        with server([*settings, f"job.port={port}"], folder):
            return len(answers.result(600)[0])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("settings", nargs="*", default=["+experiment=demo_tiny"])
    options = parser.parse_args()
    glosses = itertools.islice(dict.fromkeys(row["positive"] for row in load_wordnet("train")), 2 * options.requests)
    texts = list(glosses)
    table = Table(title=f"{' '.join(options.settings)}: {options.requests} requests, {options.clients} clients")
    for name in ("cache", "requests/s", "p50 ms", "p99 ms", "answered"):
        table.add_column(name, justify="right")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = [*options.settings, f"cache_dir={folder}"]
        with server(settings, folder) as (_, url):
            first = texts[: options.requests]
            for what in ("cold", "cached"):
                seconds, wall = load(url, first, options.clients)
                p99 = statistics.quantiles(seconds, n=100, method="inclusive")[98]
                figures = (len(seconds) / wall, 1000 * statistics.median(seconds), 1000 * p99)
                table.add_row(what, *(f"{figure:.1f}" for figure in figures), f"{len(seconds)} of {len(first)}")
        second = texts[options.requests :]
        answered = load_over_a_restart(settings, folder, second, options.clients)
        table.add_row("SIGTERM, restart", "", "", "", f"{answered} of {len(second)}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
