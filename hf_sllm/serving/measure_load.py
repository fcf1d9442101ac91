"""How many tokens a second a server writes for clients that all come at once, beside the same ones in turn."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

# Prompts of different lengths, a different one for each client.
OPENINGS = ("One day", "Once upon a time, there was", "The sun was warm. In the garden", "It rained all day, and then")
NAMES = ("Tom", "Lily", "Ben", "Mia", "Max", "Sue", "Tim", "Anna")
THINGS = ("found a ball", "saw a bird", "lost a hat", "wanted a cake")


@dataclass
class Load:
    """What was measured.

    Attributes:
        clients: How many there were, with a prompt each.
        tokens: Written by all of them, in each of the two ways.
        seconds_in_turn: One request after the other.
        seconds_at_once: All requests at the same time.
        lost: Clients that got no answer at once.
        other_answers: Clients whose answer was another than in turn.
    """

    clients: int
    tokens: int
    seconds_in_turn: float
    seconds_at_once: float
    lost: int
    other_answers: int

    @property
    def speedup(self) -> float:
        """Tokens per second at once, as a multiple of those in turn."""
        return self.seconds_in_turn / self.seconds_at_once


def measure_load(model: str, clients: int = 32, max_tokens: int = 100, batch_size: int = 32) -> Load:
    """Starts a server on the loopback address, and asks it greedy texts with as many clients.

    Args:
        model: Path or name of an SLLM.
        clients: How many, each with a prompt of its own.
        max_tokens: Of each text.
        batch_size: Of the server.

    Raises:
        ValueError: If there are fewer clients than one, or more than there are prompts.
        RuntimeError: If the server ends before it answers.
    """
    prompts = [f"{opening} {name} {thing}" for opening in OPENINGS for name in NAMES for thing in THINGS]
    prompts = prompts[:: max(len(prompts) // max(clients, 1), 1)][:clients]
    if clients < 1 or len(prompts) < clients:
        raise ValueError(f"`clients` is {clients}: it must be from 1 to {len(OPENINGS) * len(NAMES) * len(THINGS)}.")
    with running_server(model, batch_size) as url:

        def ask(prompt: str) -> tuple[str, int] | None:
            body = {"model": Path(model).name, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
            asked = Request(f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
            try:
                with urlopen(asked, timeout=600) as answer:
                    found = json.load(answer)
            except OSError:
                return None
            return found["choices"][0]["text"], found["usage"]["completion_tokens"]

        ask(prompts[0])  # whatever is done once is done now
        start = time.perf_counter()
        in_turn = [ask(prompt) for prompt in prompts]
        middle = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            at_once = list(pool.map(ask, prompts))
        end = time.perf_counter()
    return Load(
        clients=clients,
        tokens=sum(answer[1] for answer in in_turn if answer is not None),
        seconds_in_turn=middle - start,
        seconds_at_once=end - middle,
        lost=sum(answer is None for answer in at_once),
        other_answers=sum(mine != other for mine, other in zip(at_once, in_turn, strict=True)),
    )


@contextmanager
def running_server(model: str, batch_size: int) -> Iterator[str]:
    """A server in a process of its own; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hf_sllm.cli", "serve", model, "--port", str(port)]
    command += ["--batch-size", str(batch_size)]
    server = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            if server.poll() is not None:
                raise RuntimeError(f"the server ended with status {server.returncode}: run `{' '.join(command[2:])}`.")
            try:
                urlopen(f"{url}/health")
                break
            except URLError:
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(30)
