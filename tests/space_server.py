"""The Space in a process of its own, for the tests of it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

SPACE = Path(__file__).resolve().parents[1] / "spaces_app"


@contextmanager
def running_space(log: Path, **environment: str) -> Iterator[tuple[str, float]]:
    """The address of a Space, and how many seconds it took to show its page.

    Args:
        log: A file for what it prints.
        environment: Set for its process; of this one's, what names the Space's models is left out.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLLM_")},
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "GRADIO_SERVER_PORT": str(port),
        **environment,
    }
    begun = time.monotonic()
    with log.open("w") as output:
        server = subprocess.Popen([sys.executable, SPACE / "app.py"], env=settings, stdout=output, stderr=output)
    address = f"http://127.0.0.1:{port}"
    try:
        while time.monotonic() - begun < 300:
            assert server.poll() is None, log.read_text()
            try:
                urlopen(address)
                break
            except URLError:
                time.sleep(0.1)
        yield address, time.monotonic() - begun
    finally:
        server.terminate()
        server.wait(30)
