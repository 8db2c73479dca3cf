"""What a comparison has found, cell by cell."""

from collections import defaultdict
from statistics import fmean, median, quantiles
from typing import Any

from evals.beside.asking import CHOSEN, OURS, THEIRS, WHOLE
from evals.beside.journal import SidesJournal
from evals.beside.pairs import Pair, cells, key
from evals.cells import FULL
from evals.intervals import difference, estimate

Record = dict[str, Any]
Said = dict[tuple[str, float], dict[int, tuple[str, float, bool]]]  # run, budget -> item -> text, right, kept as told


def report(ledger: SidesJournal, settings: Record) -> Record:
    """All that is written, as JSON takes it."""
    found = []
    for task in settings["tasks"]:
        for protocol in settings["protocols"]:
            ours, theirs = (_said(ledger, task, protocol, side) for side in (OURS, THEIRS))
            if not (ours and theirs):
                continue
            common = {"task": task, "protocol": protocol}
            found.append(
                {**common, "policy": FULL, **_cell(ours[key({"name": FULL}), 1.0], theirs[key({"press": "none"}), 1.0])}
            )
            for pair, budget in cells(task == settings["tasks"][0], settings["budgets"]):
                cell = _cell(ours[key(pair.ours), budget], theirs[key(pair.theirs), budget])
                chosen = _chosen(ledger, task, protocol, pair, budget)
                found.append({**common, **_names(pair), "budget": budget, **cell, "chosen": chosen})
    return {"settings": settings, "cells": found, "whole": _whole(ledger)}


def _names(pair: Pair) -> Record:
    return {"policy": pair.policy, "pair": pair.label, "kind": pair.kind, "why": pair.why, "draws": pair.draws}


def _said(ledger: SidesJournal, task: str, protocol: str, side: str) -> Said:
    found: Said = defaultdict(dict)
    for (its_task, its_protocol, number, its_side), answers in ledger.entries.items():
        if (its_task, its_protocol, its_side) == (task, protocol, side):
            for run, budget, text, right, stayed in answers:
                found[run, budget][number] = (text, right, stayed)
    return found


def _cell(ours: dict[int, Any], theirs: dict[int, Any]) -> Record:
    """Both sides of a cell, on the items that both have answered."""
    both = sorted(ours.keys() & theirs.keys())
    right = [[side[n][1] for n in both] for side in (ours, theirs)]
    return {
        "items": len(both),
        "ours": estimate(right[0])._asdict(),
        "theirs": estimate(right[1])._asdict(),
        "difference": difference(*right)._asdict(),
        "same_text": fmean(ours[n][0].strip() == theirs[n][0].strip() for n in both),
        "kept_as_told": [fmean(side[n][2] for n in both) for side in (ours, theirs)],
    }


def _chosen(ledger: SidesJournal, task: str, protocol: str, pair: Pair, budget: float) -> Record | None:
    """Over items and layers: the share of the tokens kept that both sides keep; None if it was not looked into."""
    layers = [
        layer
        for (its_task, its_protocol, _, side), found in ledger.entries.items()
        if (its_task, its_protocol, side) == (task, protocol, CHOSEN)
        for label, its_budget, all_layers in found
        if (label, its_budget) == (pair.label, budget)
        for layer in all_layers
    ]
    if not layers:
        return None
    kept = sum(max(ours, theirs) for ours, theirs, _ in layers)
    return {"in_common": sum(both for *_, both in layers) / kept, "layers": len(layers)}


def _whole(ledger: SidesJournal) -> Record:
    """How often kvpress' pipeline, from beginning to end, says what its press said after our one reading."""
    same: dict[str, list[bool]] = defaultdict(list)
    failed: dict[str, str] = {}
    for (task, protocol, number, side), found in ledger.entries.items():
        if side == WHOLE:
            told = {(run, budget): text for run, budget, text, *_ in ledger.entries[task, protocol, number, THEIRS]}
            for run, budget, text in found:
                if text.startswith("RuntimeError"):
                    failed[run] = text
                else:
                    same[run].append(text == told[run, budget])
    answers = [each for run in same.values() for each in run]
    return {"answers": len(answers), "same": sum(answers), "failed": failed}


def speeds(measured: list[Record]) -> list[Record]:
    """Per policy and length: medians of tokens per second, and of the ratios within each repetition."""
    groups: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for each in measured:
        groups[each["policy"], each["length"]].append(each)
    made = []
    for (policy, length), repeats in groups.items():
        per_second = {side: median(each[side] for each in repeats) for side in ("theirs", "ours", "at_once")}
        ratios = {side: _spread([each[side] / each["theirs"] for each in repeats]) for side in ("ours", "at_once")}
        made.append({"policy": policy, "length": length, "repeats": len(repeats), **per_second, "ratios": ratios})
    return made


def _spread(values: list[float]) -> Record:
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": middle, "low": low, "high": high}
