"""The harness's own command, run in a process that knows our models and tasks.

The harness loads a model by the auto classes, and importing any part of `hf_sllm` registers ours with them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

# The folder of our tasks, as `--include_path` or `TaskManager` take it.
TASKS = Path(__file__).parent / "tasks"


def run(arguments: Sequence[str]) -> None:
    """Runs the harness's command. It ends the process where a program would: after its help, or a wrong argument.

    Args:
        arguments: Its own ones. `--include_path` of our tasks is added where they have none.

    Raises:
        ImportError: If the harness is not installed.
        ValueError: If the harness refuses what it is given, or a task's file is not named or cannot be read.
    """
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise ImportError('`hf-sllm lm-eval` needs lm-evaluation-harness: pip install "hf-sllm[harness]"') from error

    own_path = any(argument.split("=")[0] == "--include_path" for argument in arguments)
    included = [] if own_path else ["--include_path", str(TASKS)]
    given = sys.argv
    # The harness reads its arguments from here, and adds to them.
    sys.argv = ["lm-eval", *arguments, *included]
    try:
        cli_evaluate()
    finally:
        sys.argv = given


__all__ = ["TASKS", "run"]
