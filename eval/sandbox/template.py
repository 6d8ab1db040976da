"""The locked interpreter: it runs no generated code itself, but forks a process for each piece of it.

    python -m eval.sandbox.template <descriptor of the control socket> <JSON list of readable paths> <strict|lenient>

It has imported what code commonly uses, and nothing of a problem ever passes through it: a job's two pipes come as
descriptors over the control socket, and the forked process alone reads from them. Messages on that socket: one byte for
the kind of job, with the pipes; one byte to end it, answered by four bytes of the process's wait status.
"""

import gc
import json
import os
import signal
import socket
import sys
import traceback
import types

from eval.sandbox.lockdown import die_with_parent, give_up_calls, give_up_files, require_calls_known

REFERENCE, SAMPLE = b"r", b"s"


def main(descriptor: str, readable: str, manner: str) -> None:
    control = socket.socket(fileno=int(descriptor))
    strict = manner == "strict"
    _import_what_code_uses()
    from eval.sandbox import job

    trouble = []
    for give_up in (lambda: give_up_files(json.loads(readable)), require_calls_known):
        try:
            give_up()
        except OSError as error:
            trouble.append(error.strerror or str(error))
    sys.path[:] = [place for place in sys.path if place and place != os.environ["PYTHONPATH"]]
    del os.environ["PYTHONPATH"]
    control.sendall(json.dumps("; ".join(trouble)).encode() + b"\n")
    gc.collect()
    gc.freeze()
    while True:
        kind, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        if not kind:
            return
        process = os.fork()
        if process == 0:
            try:
                control.close()
                die_with_parent()
                _run(job, kind, descriptors, strict)
            finally:
                os._exit(1)
        for end in descriptors:
            os.close(end)
        ended = control.recv(1)
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if not ended:
            return
        control.sendall(status.to_bytes(4, "little"))


def _run(job: types.ModuleType, kind: bytes, descriptors: list[int], strict: bool) -> None:
    job.guard(sample=kind == SAMPLE)
    try:
        give_up_calls()
    except OSError:
        if strict:
            return
    job.run(*descriptors, sample=kind == SAMPLE)


def _import_what_code_uses() -> None:
    """Numpy and EvalPlus's guard among it; EvalPlus would import Hugging Face's datasets, which nothing here uses."""
    import array, bisect, cmath, collections, copy, datetime, decimal, fractions, functools, hashlib, heapq  # noqa: E401, F401, I001
    import itertools, math, operator, queue, random, re, statistics, string, textwrap, time, typing, unicodedata  # noqa: E401, F401

    import numpy  # noqa: F401

    unused = types.ModuleType("datasets")
    setattr(unused, "load_dataset", None)  # noqa: B010
    sys.modules["datasets"] = unused
    import evalplus.eval.utils  # noqa: F401

    del sys.modules["datasets"]


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
