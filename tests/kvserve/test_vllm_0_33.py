"""kvserve fits vLLM 0.33 by what its wheel declares, and takes its way where the two versions part. No vLLM is run."""

import json
from types import SimpleNamespace

import pytest

from kvserve.startup import vllm_0_33
from kvserve.startup.guard import signatures
from tests.kvserve.record_vllm_0_33 import AGAIN, RECORD, names_used
from tests.kvserve.source_of_vllm import SourceOfVLLM

WHEEL = json.loads(RECORD.read_text(encoding="utf-8"))


def test_it_is_a_record_of_0_33():
    assert WHEEL["version"].startswith(vllm_0_33.VERSION)


def test_what_we_override_has_the_parameters_that_we_expect():
    expected = {f"{owner}.{name}": takes for owner, of in signatures("0.33.0").items() for name, takes in of.items()}
    assert WHEEL["methods"] == expected, f"unless this is an override of today: {AGAIN}"


def test_what_we_import_is_there():
    names = names_used(SourceOfVLLM.installed())
    assert {"vllm.LLM", "vllm.v1.attention.selector._cached_get_attn_backend"} <= set(names)
    names |= {f"{modules[1]}.{name}": "kvserve/startup/vllm_0_33.py" for name, modules in vllm_0_33.MOVED.items()}
    unknown = {name: file for name, file in names.items() if name not in WHEEL["names"]}
    assert unknown == {}, AGAIN
    assert [name for name, module in WHEEL["names"].items() if module is None] == []


def test_the_installed_vllm_has_it_too():
    source, which = SourceOfVLLM.installed(), vllm_0_33.INSTALLED
    names = [*names_used(source), *(f"{modules[which]}.{name}" for name, modules in vllm_0_33.MOVED.items())]
    assert [name for name in names if source.find(name) is None] == []


# -- a prefix hit that must not be too long ------------------------------------------------------------


class Cached:
    """A request of 100 tokens, of which the first `tokens` are in the prefix cache, in blocks of 16."""

    num_tokens, block_hashes, empty_kv_cache_blocks = 100, "hashes", ()

    def __init__(self, tokens):
        self.tokens = tokens
        self.coordinator = SimpleNamespace(find_longest_cache_hit=self.find)
        self.limits = []

    def find(self, hashes, limit):
        assert hashes == self.block_hashes
        self.limits.append(limit)
        hit = min(self.tokens, limit) // 16 * 16
        return tuple(range(hit // 16)), hit, 0

    def create_kv_cache_blocks(self, blocks):
        return blocks

    def look_up(self, limit=None):
        blocks, hit, _ = self.find(self.block_hashes, self.num_tokens - 1 if limit is None else limit)
        return blocks, hit, 0, False

    def within(self, limit, *given):
        return vllm_0_33.hit_within(limit, self, self.look_up, given, self)


@pytest.mark.parametrize("tokens", [0, 40, 100])
@pytest.mark.parametrize("limit", [0, 1, 16, 50, 99, 100])
def test_both_versions_find_the_same(tokens, limit):
    old, new = Cached(tokens), Cached(tokens)
    assert old.within(limit) == new.within(limit, None)
    assert new.limits == [min(limit, 99)]


def test_a_limit_of_vllms_own_stays():
    cached = Cached(100)
    assert cached.within(80, 33)[1] == 32 and cached.within(20, 33)[1] == 16


def test_a_short_hit_is_not_looked_up_again():
    cached = Cached(40)
    assert cached.within(50)[1] == 32
    assert cached.limits == [99]
