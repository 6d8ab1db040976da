"""EvalPlus's own judge, run in the sandbox.

    python evalplus_child.py judge <humaneval|mbpp> <samples.jsonl> <workers> <seconds a test>
    python evalplus_child.py answers <humaneval|mbpp>

The data set comes through HUMANEVAL_OVERRIDE_PATH or MBPP_OVERRIDE_PATH, which EvalPlus reads when it is imported.
`judge` leaves EvalPlus's own <samples>_eval_results.json. `answers` runs the data set's own solutions alone and leaves
what they return in EvalPlus's cache, where a later `judge` finds it.
"""

import multiprocessing
import os
import resource
import sys
import traceback
import types

from lockdown import lock_down

SAMPLE_CPU_SECONDS = 150  # EvalPlus itself gives a sample 62 seconds
SAMPLE_FILE_BYTES = 64 * 2**20


def main(action: str, dataset: str, *rest: str) -> None:
    # EvalPlus imports Hugging Face datasets for a benchmark that is not run here; it would be most of the start-up.
    unused = types.ModuleType("datasets")
    setattr(unused, "load_dataset", None)  # noqa: B010
    sys.modules["datasets"] = unused
    from evalplus import evaluate as evalplus

    if action == "answers":
        if dataset == "humaneval":
            evalplus.get_groundtruth(evalplus.get_human_eval_plus(), evalplus.get_human_eval_plus_hash(), [])
        else:
            evalplus.get_groundtruth(
                evalplus.get_mbpp_plus(), evalplus.get_mbpp_plus_hash(), evalplus.MBPP_OUTPUT_NOT_NONE_TASKS
            )
        return
    samples, workers, seconds = rest
    # EvalPlus judges each sample in a process forked from a pool's worker, itself forked from this one.
    multiprocessing.set_start_method("fork")
    os.register_at_fork(after_in_child=_Guard(os.getpid()))
    evalplus.evaluate(dataset=dataset, samples=samples, parallel=int(workers), min_time_limit=float(seconds))


class _Guard:
    """Locks down the processes that run samples, the grandchildren of `judge`."""

    def __init__(self, judge: int) -> None:
        self._judge = judge
        self._scratch = os.environ["TMPDIR"]

    def __call__(self) -> None:
        if os.getppid() == self._judge:
            return
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (SAMPLE_CPU_SECONDS, SAMPLE_CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_FSIZE, (SAMPLE_FILE_BYTES, SAMPLE_FILE_BYTES))
        lock_down(self._scratch)


if __name__ == "__main__":
    status = 0
    try:
        main(*sys.argv[1:])
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # EvalPlus leaves a thread asleep for up to 20 seconds, which a normal exit would wait for.
    os._exit(status)
