"""kvpress' side, in an environment of its own: one JSON request a line on stdin, one JSON answer a line on stdout."""

import json
import os
import sys
import time
from functools import cached_property
from importlib.metadata import version
from statistics import fmean
from typing import Any

import torch
from kvpress import BasePress, KVPressTextGenerationPipeline
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from evals.beside import answering, choosing
from evals.beside.answering import lengths
from evals.beside.presses import eager, press
from evals.beside.reading import read

PACKAGES = ("kvpress", "transformers", "torch")


class Worker:
    """Answers requests; the name of each is that of a method."""

    def __init__(self, model: str) -> None:
        self._model, self._tokenizer = model, AutoTokenizer.from_pretrained(model)

    def about(self) -> Any:
        return {"threads": torch.get_num_threads(), **{name: version(name) for name in PACKAGES}}

    def answers(self, ids: list[int], act: int, new: int, runs: list[Any]) -> Any:
        """What each run says: tokens up to `act` are read and pressed, the others are asked, `new` generated.

        A run is (settings of a press or None, tokens to keep, seed). Text, and tokens kept, mean over the layers.
        """
        ways = {False, *(_eager(run[0]) for run in runs)}
        readings = {way: read(self._pipeline(way).model, ids[:act]) for way in ways}
        caches = []
        for theirs, keep, seed in runs:
            torch.manual_seed(seed)
            way = _eager(theirs)
            caches.append(readings[way][0].cache(theirs and press(theirs, keep, act), self._pipeline(way).model))
        kept = [fmean(lengths(cache)) for cache in caches]
        texts = answering.answers(self._fast, caches, ids[act:], readings[False][1], act, new)
        return list(zip(texts, kept, strict=True))

    def whole(self, ids: list[int], act: int, new: int, runs: list[Any]) -> Any:
        """As `answers`, but each run by kvpress' pipeline from beginning to end; an error in place of a text."""
        found = []
        for theirs, keep, seed in runs:
            torch.manual_seed(seed)
            made = theirs and press(theirs, keep, act)
            try:
                found.append(self._piped(_eager(theirs), made, ids, act, new))
            except RuntimeError as error:
                found.append(f"{type(error).__name__}: {error}")
        return found

    def keeps(self, ids: list[int], act: int, pairs: list[Any]) -> Any:
        """Tokens that kvserve's policy keeps, kvpress' press keeps, and both, by pair and layer.

        A pair is (fields of the policy, settings of the press, tokens to keep).
        """
        with torch.inference_mode():
            ways = {way: read(self._pipeline(way).model, ids[:act])[0] for way in {_eager(pair[1]) for pair in pairs}}
            return [
                choosing.in_common(ours, theirs, keep, ways[_eager(theirs)], self._pipeline(_eager(theirs)).model)
                for ours, theirs, keep in pairs
            ]

    def timed(self, prompts: list[list[int]], act: list[int], new: int, theirs: Any, budget: list[int]) -> Any:
        """Seconds for kvpress' pipeline to answer the prompts one by one, `new` tokens each, whatever they are."""
        pipe = self._pipeline(_eager(theirs))
        stop, pipe.model.generation_config.eos_token_id = pipe.model.generation_config.eos_token_id, -1
        start = time.perf_counter()
        for ids, read_first, keep in zip(prompts, act, budget, strict=True):
            self._piped(_eager(theirs), theirs and press(theirs, keep, read_first), ids, read_first, new)
        seconds = time.perf_counter() - start
        pipe.model.generation_config.eos_token_id = stop
        return seconds

    def _piped(self, way: bool, made: BasePress | None, ids: list[int], act: int, new: int) -> str:
        inputs = {"context_ids": torch.tensor([ids[:act]]), "questions_ids": [torch.tensor([ids[act:]])]}
        [text] = self._pipeline(way).forward(inputs, press=made, max_new_tokens=new)
        return str(text)

    def _pipeline(self, way: bool) -> Any:
        return self._eager if way else self._fast

    @cached_property
    def _fast(self) -> Any:
        return self._load("sdpa")

    @cached_property
    def _eager(self) -> Any:
        return self._load("eager")

    def _load(self, attention: str) -> Any:
        model = AutoModelForCausalLM.from_pretrained(self._model, dtype=torch.float32, attn_implementation=attention)
        return KVPressTextGenerationPipeline(model=model.eval(), tokenizer=self._tokenizer)


def _eager(theirs: dict[str, Any] | None) -> bool:
    return theirs is not None and eager(theirs)


def main(model: str) -> None:
    logging.disable_progress_bar()
    out = os.fdopen(os.dup(1), "w")
    sys.stdout = sys.stderr  # what a library prints is no answer
    worker = Worker(model)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(getattr(worker, asked.pop("do"))(**asked)), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
