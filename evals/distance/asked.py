"""Needles at a chosen distance from where their code is to be said."""

from random import Random

from evals.items import Item
from models.tasks.facts import code_turn, key_pairs
from models.tasks.scene import World

NEEDLES = 8
_NEEDLE = 11  # tokens
_RESERVE = 8  # for <bos> and slips


def at_distance(world: World, length: int, distance: int, number: int, seed: int = 0) -> Item:
    """A prompt of about `length` tokens in which the code asked for stands about `distance` tokens before its answer.

    Seven other needles are spread over the text, before and behind as there is room. Equal arguments give equal items.
    """
    rng = Random(f"distance/{seed}/{length}/{distance}/{number}")
    keys, codes = key_pairs(rng, NEEDLES), rng.sample(range(1000, 10000), NEEDLES)
    asked, *others = [f"The code for {key} is {code}." for key, code in zip(keys, codes, strict=True)]
    turn = code_turn(keys[0], codes[0])
    behind = max(0, distance - _NEEDLE // 2 - world.size(turn.ask))
    share = behind / max(1, length)
    late = min(round(share * len(others)), behind // (2 * _NEEDLE))
    before = length - behind - _NEEDLE - world.size(turn.ask + turn.reply) - _RESERVE
    parts = [world.weave(rng, others[late:], before), asked, world.weave(rng, others[:late], behind)]
    return Item("niah", "completion", length, number, " ".join(filter(None, parts)), turn.ask, turn.reply)
