"""One engine and one model in a process of their own: `python -m harc.checking.worker ENGINE MODEL < ids.json`.

Reads {"ids": token ids, "top": k}; writes one JSON line: {"log_probs": for each token after the first {id: nats} of the
token and of the k most probable ones, "load": {what the engine said of the weights: names}}.
"""

import json
import os
import sys
from typing import Any

TOP = 5


def by_transformers(model: str, ids: list[int]) -> dict[str, Any]:
    """Loads with AutoModelForCausalLM, in float32 on a CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: Any = AutoModelForCausalLM.from_pretrained(
        model,
        dtype=torch.bfloat16 if device == "cuda" else torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    loaded, info = found  # as output_loading_info asks
    loaded.eval().to(device)
    with torch.no_grad():
        log_probs = loaded(torch.tensor([ids], device=device)).logits[0, :-1].float().log_softmax(-1).cpu()
    best = log_probs.topk(TOP).indices.tolist()
    said = [
        {str(token): float(row[token]) for token in {follows, *top}}
        for row, follows, top in zip(log_probs, ids[1:], best, strict=True)
    ]
    return {"log_probs": said, "load": {key: sorted(map(str, names))[:20] for key, names in info.items() if names}}


def by_vllm(model: str, ids: list[int]) -> dict[str, Any]:
    """Loads with vLLM, in float32 on a CPU."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR", VLLM_NO_USAGE_STATS="1")
    import torch
    from vllm import LLM, SamplingParams, TokensPrompt

    on_gpu = torch.cuda.is_available()
    settings: dict[str, Any] = {} if on_gpu else {"enable_chunked_prefill": False, "kv_cache_memory_bytes": 1 << 28}
    engine = LLM(
        model=model,
        dtype="bfloat16" if on_gpu else "float32",
        enforce_eager=True,
        max_num_seqs=1,
        max_model_len=len(ids) + 8,
        disable_log_stats=True,
        load_format="safetensors",
        use_tqdm_on_load=False,
        trust_remote_code=False,
        **settings,
    )
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=TOP)
    [output] = engine.generate([TokensPrompt(prompt_token_ids=ids)], params, use_tqdm=False)
    assert output.prompt_logprobs is not None  # they were asked for
    rows = [row or {} for row in list(output.prompt_logprobs)[1:]]
    said = [{str(token): value.logprob for token, value in row.items()} for row in rows]
    return {"log_probs": said, "load": {}}


ENGINES = {"transformers": by_transformers, "vllm": by_vllm}


if __name__ == "__main__":
    answers = os.dup(1)
    os.dup2(2, 1)  # engines print; the answer alone goes to standard output
    given = json.load(sys.stdin)
    found = ENGINES[sys.argv[1]](sys.argv[2], given["ids"])
    with os.fdopen(answers, "w") as stream:
        stream.write(json.dumps(found) + "\n")
