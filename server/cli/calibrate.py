"""`kvserve calibrate`: run text through a model's engine and write the statistics that calibrated policies need."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvserve.evidence import calibration
from kvserve.policy import LayerView, registry
from models.fetch import located
from models.wheels import FetchError
from server.cli.corpus import CorpusError, text_of, windows
from server.cli.embedded import folder

BUDGETS = tuple(i / 20 for i in range(1, 20))
"""Kept fractions at which PrefixKV's layer budgets are noted; in between they are interpolated."""

WATCHED = {"name": "elastic-cache", "budget": 1.0}
"""A policy that gathers attention mass and, at this budget, never drops a token."""


def calibrate(args: argparse.Namespace) -> int:
    """Returns the exit code: 0 written, 1 cannot, 2 wrong usage."""
    problem = _usage(args)
    if problem is not None:
        print(f"kvserve calibrate: {problem}", file=sys.stderr)
        return 2
    try:
        llm = _engine(args)
        prompts = windows(text_of(args.corpus), _encoder(llm), args.tokens, args.window)
    except (CorpusError, FetchError) as error:
        print(f"kvserve calibrate: {error}", file=sys.stderr)
        return 1
    probes = _probed(llm, prompts)
    tensors = {**query_statistics(probes), **layer_budgets(probes[0].mass)}
    if "q_abs" not in tensors:
        print("note: this model's positions are not a plain rotary embedding; no query statistics", file=sys.stderr)
    tokens = sum(map(len, prompts))
    about = {"model": Path(args.model or "mini").name, "tokens": str(tokens), "corpus": _corpus_name(args)}
    calibration.save(args.output, tensors, llm.llm_engine.vllm_config.model_config.hf_config, about)
    print(f"{args.output}: {tokens:,} tokens in {len(prompts)} prompts, {args.output.stat().st_size:,} bytes")
    print(_concentration(tensors))
    return 0


def _usage(args: argparse.Namespace) -> str | None:
    if args.window < 64:
        return f"--window is {args.window}; allowed: at least 64"
    if args.tokens < args.window:
        return f"--tokens is {args.tokens}; allowed: at least --window, {args.window}"
    if args.corpus is not None and not args.corpus.is_file():
        return f"--corpus {args.corpus} does not exist"
    if not args.output.parent.is_dir():
        return f"--output {args.output}: the folder {args.output.parent} does not exist"
    return None


def _corpus_name(args: argparse.Namespace) -> str:
    return args.corpus.name if args.corpus else "Python documentation"


def _engine(args: argparse.Namespace) -> Any:
    """vLLM in this process with kvserve's scheduler and worker; nothing of a prompt is reused by another."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm import LLM

    return LLM(
        model=located(args.model) if args.model else str(folder()),
        dtype=args.dtype,
        tensor_parallel_size=args.tensor_parallel_size,
        trust_remote_code=args.trust_remote_code,
        max_model_len=args.window + 8,
        max_num_seqs=1,
        enforce_eager=True,
        enable_prefix_caching=False,
        scheduler_cls="kvserve.engine.scheduler.KVScheduler",
        worker_cls="kvserve.engine.worker.KVWorker",
    )


def _encoder(llm: Any) -> Any:
    tokenizer = llm.get_tokenizer()
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def _probed(llm: Any, prompts: Sequence[list[int]]) -> list[Any]:
    """What each worker sampled of all prompts; with a progress bar."""
    from tqdm import tqdm
    from vllm import SamplingParams

    llm.collective_rpc("kv_probe_start")
    params = SamplingParams(max_tokens=1, temperature=0, extra_args={"kv_policy": WATCHED})
    with tqdm(total=sum(map(len, prompts)), unit=" tokens", desc="calibrating", file=sys.stderr) as bar:
        for prompt in prompts:
            llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
            bar.update(len(prompt))
    return list(llm.collective_rpc("kv_probe_take"))


def query_statistics(probes: Sequence[Any]) -> dict[str, Tensor]:
    """E[q_f] and E[|q_f|], (L, Hq, R), of the workers' heads side by side; empty without rotary positions."""
    if any(probe.total is None for probe in probes):
        return {}
    mean = torch.cat([probe.total / probe.count for probe in probes], dim=1)
    moduli = torch.cat([probe.moduli / probe.count for probe in probes], dim=1)
    return {"q_real": mean.real, "q_imag": mean.imag, "q_abs": moduli}


def layer_budgets(mass: Sequence[Tensor]) -> dict[str, Tensor]:
    """From (L, n) attention mass per prompt: what each layer keeps at each of BUDGETS, mean over prompts."""
    shares = torch.stack([torch.stack([_shares(one, budget) for budget in BUDGETS], dim=1) for one in mass])
    return {"budgets": torch.tensor(BUDGETS), "keep_share": shares.mean(dim=0).float()}


def _shares(mass: Tensor, budget: float) -> Tensor:
    """(L,): the fraction of a prompt that PrefixKV lets each layer keep."""
    slots = mass.shape[1]
    policy = registry.get("prefixkv").model_validate({"budget": budget})
    return torch.tensor(policy.own_shares_of(list(_views(mass)), policy.target(slots))) / slots


def _views(mass: Tensor) -> Iterator[LayerView]:
    layers, slots = mass.shape
    for layer in range(layers):
        yield LayerView(
            layer=layer,
            num_layers=layers,
            logical=slots,
            since=0,
            positions=torch.arange(slots)[None],
            load=lambda _: torch.empty(0),
            prompt=slots,
            mass=mass[layer][None, :, None],
        )


def _concentration(tensors: dict[str, Tensor]) -> str:
    """TriAttention's premise in numbers: R = |E q_f| / E|q_f| of the strongest band, and of all."""
    if "q_abs" not in tensors:
        return ""
    moduli = tensors["q_abs"]
    r = torch.complex(tensors["q_real"], tensors["q_imag"]).abs() / moduli.clamp(min=1e-12)
    strongest = r.gather(-1, moduli.argmax(dim=-1, keepdim=True))
    return (
        f"concentration R of queries: {strongest.mean():.2f} in the strongest band of a head, {r.mean():.2f} over all"
    )
