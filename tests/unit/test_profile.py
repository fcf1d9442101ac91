"""A profile gives each moment to one part, and counts each part's calls."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

from hf_sllm.benchmark import make_pair, random_text
from hf_sllm.benchmark.generation import Side
from hf_sllm.benchmark.profile import PARTS, REST, PartClock, profile_sides
from hf_sllm.benchmark.shapes import fit_shortlist
from hf_sllm.cli import app


def test_every_moment_counts_for_one_part(monkeypatch):
    """A part within another has its own time, and the other goes on after it."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = PartClock(torch.nn.Linear(1, 1), 5, 9)
    clock.model.device = torch.device("cpu")

    def after(seconds: float, step, *args) -> None:
        now[0] += seconds
        step(*args)

    after(1, clock._enter, "decoder")  # before the first mark nothing counts
    after(1, clock._leave)
    after(1, clock.mark, 5)
    after(2, clock._enter, "LM head")
    after(4, clock._enter, "backbone")
    after(8, clock._leave)
    after(16, clock._leave)
    after(32, clock.mark, 9)
    after(64, clock._enter, "encoder")
    assert clock.seconds == {"decoder": 0, "LM head": 4 + 16, "backbone": 8, "encoder": 0, REST: 2 + 32}
    assert clock.calls == {"decoder": 0, "LM head": 1, "backbone": 1, "encoder": 0, REST: 0}


def test_parts_are_called_as_often_as_each_way_of_writing_says():
    torch.manual_seed(0)
    backbone, sllm = (model.eval() for model in make_pair("tiny", 4, decoder_layers=1))
    fit_shortlist(sllm)
    loop = {"max_sentences": math.inf}
    sides = [Side("", backbone, {}), Side("", sllm, {}), Side("", sllm, loop)]
    sides.append(Side("", sllm, {**loop, "shortlist_size": 30}))
    profiles = profile_sides(sides, random_text(2, 16, 4, 300), 4, 12, runs=2, progress=False)
    calls = [profile.calls for profile in profiles]
    assert calls[0] == {"decoder": 0, "LM head": 1, "backbone": 1, "encoder": 0}
    assert calls[1] == calls[2] == {"decoder": 1, "LM head": 1, "backbone": 1 / 4, "encoder": 1 / 4}
    assert calls[3] == calls[2]
    operations = [profile.operations for profile in profiles]
    # Of the tiny LM head it is the product, without a bias.
    assert operations[0]["LM head"] == operations[1]["LM head"] == operations[2]["LM head"] == 1
    assert operations[1]["backbone"] == pytest.approx(operations[0]["backbone"] / 4, rel=0.1)
    assert operations[1]["decoder"] == operations[2]["decoder"] > 10
    for profile in profiles:
        assert all((profile.seconds[part] > 0) == (profile.calls.get(part, 1) > 0) for part in PARTS)
    for model in (backbone, sllm):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_command_saves_the_profile(tmp_path):
    command = ["bench", "profile", "tiny", "--context-length", "16", "--sentence-length", "4", "--new-tokens", "8"]
    command += ["--runs", "1", "--shortlist", "30", "--decoder-layers", "1", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "Milliseconds for a token" in result.stdout and "Operations for a token" in result.stdout
    found = json.loads((tmp_path / "profile.json").read_text())
    assert len(found["profiles"]) == 4 and found["decoder_layers"] == 1
    assert all(set(profile["seconds"]) == set(PARTS) for profile in found["profiles"])


@pytest.mark.parametrize(
    "option, message", [("--dtype=int8", "`dtype` is 'int8'"), ("--new-tokens=10", "multiple of")]
)
def test_what_cannot_be_profiled_is_refused(option, message):
    result = CliRunner().invoke(app, ["bench", "profile", "tiny", option])
    assert result.exit_code == 1 and message in " ".join(result.stderr.split())
