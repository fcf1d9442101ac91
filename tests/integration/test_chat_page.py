"""Every block of docs/chat.md runs as it stands, offline: the SLLM that is served at the end answers as taught."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "chat.md"


@pytest.mark.slow
def test_the_page_from_a_chat_model_to_a_served_sllm(tmp_path):
    pytest.importorskip("openai")
    blocks = re.findall(r"```(python|bash|yaml)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    kinds = [kind for kind, _ in blocks]
    assert kinds == ["bash", "python", "python", "yaml", "bash", "python", "bash", "python"]
    _, make, chats, recipe, train, look, serve, ask = (block for _, block in blocks)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    cli = [sys.executable, "-m", "hf_sllm.cli"]
    run(sys.executable, "-c", make)
    run(sys.executable, "-c", chats)
    (tmp_path / "chat.yaml").write_text(recipe)
    run(*cli, *train.split()[1:])
    assert run(sys.executable, "-c", look) == f"{comments(look)[-1]}\n"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    assert "8000" in serve and "8000" in ask
    server = subprocess.Popen([*cli, *serve.replace("8000", port).split()[1:]], cwd=tmp_path, env=environment)
    try:
        for _ in range(600):
            assert server.poll() is None
            try:
                urlopen(f"http://127.0.0.1:{port}/health")
                break
            except URLError:
                time.sleep(0.1)
        answer, reason = comments(ask)
        assert run(sys.executable, "-c", ask.replace("8000", port)) == f"{answer}\n{reason}\n{answer}"
    finally:
        server.terminate()
        server.wait(30)


def comments(block: str) -> list[str]:
    """What a block says it prints."""
    return re.findall(r"print\(.*\)  # (.*)", block)
