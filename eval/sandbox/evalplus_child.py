"""EvalPlus's own judge, run in the sandbox: python evalplus_child.py <humaneval|mbpp> <samples.jsonl> <workers>.

The data set comes through HUMANEVAL_OVERRIDE_PATH or MBPP_OVERRIDE_PATH, which EvalPlus reads when it is imported; the
verdicts go to <samples>_eval_results.json, EvalPlus's own file.
"""

import multiprocessing
import os
import sys
import traceback
import types


def main(dataset: str, samples: str, workers: int) -> None:
    multiprocessing.set_start_method("fork")
    # EvalPlus imports Hugging Face datasets for a benchmark that is not run here; it would be most of the start-up.
    unused = types.ModuleType("datasets")
    unused.load_dataset = None
    sys.modules["datasets"] = unused
    from evalplus.evaluate import evaluate

    evaluate(dataset=dataset, samples=samples, parallel=workers)


if __name__ == "__main__":
    status = 0
    try:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # EvalPlus leaves a thread asleep for up to 20 seconds, which a normal exit would wait for.
    os._exit(status)
