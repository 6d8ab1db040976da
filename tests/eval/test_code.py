"""Generated code runs in the sandbox: right is right, hostile is wrong and harms nothing."""

import contextlib
import os
import signal

import psutil
import pytest

from eval import sandbox
from eval.judges import evalplus, judge
from eval.judges.code import extract_code

DOUBLE = {
    "task_id": "HumanEval/3",
    "prompt": 'import math\n\n\ndef double(x):\n    """Twice x."""\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "base_input": [[1], [2]],
    "plus_input": [[5], [-7]],
    "atol": 0,
    "contract": "",
}
RIGHT = "def double(x):\n    return 2 * x\n"


@pytest.mark.parametrize(
    ("response", "code"),
    [
        (RIGHT + "```\nand prose", "import math\n\n\n\n" + RIGHT),
        ("    return x + x\n```", DOUBLE["prompt"] + "    return x + x\n"),
        ("```python\n" + RIGHT + "```", "import math\n\n\n\n" + RIGHT),
        ("Here it is:\n```python\n" + RIGHT + "```\n", "import math\n\n\n\n" + RIGHT),
        ("", DOUBLE["prompt"]),
    ],
)
def test_code_is_what_stands_before_the_closing_fence(response, code):
    assert extract_code(response, DOUBLE) == code


def test_problems_share_one_run_and_equal_responses_one_verdict():
    same_id = {
        **DOUBLE,
        "entry_point": "triple",
        "prompt": "def triple(x):\n",
        "canonical_solution": "    return 3 * x\n",
    }
    records = [{"problem": DOUBLE}, {"problem": same_id}, {"problem": DOUBLE}, {"problem": DOUBLE}]
    passes_base_only = "def double(x):\n    return 2 * abs(x)\n"
    responses = [RIGHT, "def triple(x):\n    return x + x + x\n```", RIGHT, passes_base_only]
    assert judge("tiny_mbpp_plus", records, responses) == [True, True, True, False]


HOSTILE = {
    "endless loop": RIGHT.replace("return", "while x: pass\n    return"),
    "fork bomb": "import posix\nwhile True:\n    posix.fork()\n" + RIGHT,
    "kills its parent": "import posix, signal\nposix.kill(posix.getppid(), 9)\n" + RIGHT,
    "kills everyone": "import posix\nposix.kill(-posix.getpgrp(), 15)\n" + RIGHT,
    "reads a secret": "import os\nassert os.environ['HARC_TEST_TOKEN']\n" + RIGHT,
    "opens a socket": "import socket\nsocket.socket().connect(('127.0.0.1', 9))\n" + RIGHT,
    "deletes a file": "import posix\nposix.unlink({victim!r})\n" + RIGHT,
    "writes outside": "import posix\nposix.open({victim!r} + '2', posix.O_CREAT | posix.O_WRONLY)\n" + RIGHT,
    "starts a program": "import posix\nposix.execv('/bin/true', ['true'])\n" + RIGHT,
    "takes the memory": "x = bytearray(5 * 2**30)\n" + RIGHT,
    "writes a big file": "import io\nwith io.open('x', 'wb') as f:\n    f.write(bytes(300 * 2**20))\n" + RIGHT,
    "exits": "import sys\nsys.exit(0)\n" + RIGHT,
    "leaves": "import posix\nposix._exit(0)\n" + RIGHT,
    "is not Python": "def double(x) return",
    "nests too deep": "x = " + "(" * 5000 + ")" * 5000 + "\n" + RIGHT,
}
HARMLESS = {
    "prints much": "import posix\nfor _ in range(2000): print('x' * 1000); posix.write(1, b'x' * 1000)\n" + RIGHT
}


def _modes():
    return ["limits", *(mode for mode in ("unshare", "bubblewrap") if _available(mode))]


def _available(mode: str) -> bool:
    os.environ["HARC_SANDBOX"] = mode
    sandbox.isolation.cache_clear()
    try:
        sandbox.isolation()
        return True
    except ValueError:
        return False
    finally:
        del os.environ["HARC_SANDBOX"]
        sandbox.isolation.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("mode", _modes())
def test_hostile_code_is_wrong_and_harms_nothing(mode, tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    monkeypatch.setenv("HARC_TEST_TOKEN", "secret")
    monkeypatch.setenv("HARC_SANDBOX", mode)
    sandbox.isolation.cache_clear()
    signalled = []
    previous = signal.signal(signal.SIGTERM, lambda *_: signalled.append(1))
    try:
        programs = {
            name: code.replace("{victim!r}", repr(str(victim))) for name, code in {**HOSTILE, **HARMLESS}.items()
        }
        programs["right"] = RIGHT
        verdicts = judge("tiny_humaneval_plus", [{"problem": DOUBLE}] * len(programs), list(programs.values()))
    finally:
        signal.signal(signal.SIGTERM, previous)
        sandbox.isolation.cache_clear()
    right = {name for name, verdict in zip(programs, verdicts, strict=True) if verdict}
    assert right == {"right", *HARMLESS}
    assert victim.read_text() == "untouched"
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]
    assert not signalled


def test_a_judge_that_does_not_run_is_an_error_and_not_a_row_of_wrong_answers(monkeypatch):
    broken = {**DOUBLE, "canonical_solution": "    raise SystemExit\n"}
    with pytest.raises(evalplus.JudgeError, match="own solution"):
        judge("tiny_humaneval_plus", [{"problem": broken}], [RIGHT])


def test_the_environment_of_a_child_holds_no_secret(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY", "LD_PRELOAD", "PYTHONPATH"):
        monkeypatch.setenv(name, "secret")
    assert "secret" not in sandbox.clean_environment(tmp_path, {}).values()


def test_a_child_that_takes_too_long_is_killed_with_all_it_started(tmp_path, monkeypatch):
    (tmp_path / "sleep.py").write_text("import os, time\nos.fork()\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n")
    monkeypatch.setattr(sandbox, "CHILDREN", tmp_path)
    monkeypatch.setenv("HARC_SANDBOX", "limits")
    sandbox.isolation.cache_clear()
    outcome = sandbox.run("sleep.py", [], tmp_path, sandbox.Limits(seconds=4), {})
    sandbox.isolation.cache_clear()
    assert outcome.status is None
    pids = [int(pid) for pid in outcome.log.split()]
    assert len(pids) == 2
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
