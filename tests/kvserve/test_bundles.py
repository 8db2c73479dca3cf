"""How many groups a server makes unasked, and why."""

from types import SimpleNamespace

import pytest

from kvserve.startup.bundles import bundled, chosen


def config(override=None, unified=False):
    return SimpleNamespace(
        cache_config=SimpleNamespace(num_gpu_blocks_override=override),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=unified),
    )


KSA = ("summary", "full", "summary", "summary")


@pytest.mark.parametrize(
    ("layers", "kinds", "groups"),
    [(36, (), 2), (27, (), 3), (31, (), 1), (1, (), 1), (4, KSA, 4), (36, KSA * 9, 4), (36, ("full",) * 36, 2),
     (26, (*KSA * 6, "full", "full"), 2)],
)  # fmt: skip
def test_few_and_of_equal_size(layers, kinds, groups):
    found = chosen(None, ["spec"] * layers, 0, kinds, config())
    assert (found.groups, layers % found.groups) == (groups, 0)


def test_what_is_asked_for_wins():
    assert chosen(7, ["spec"] * 4, 3, KSA, config(override=9)).groups == 7  # refused where specs are tagged


@pytest.mark.parametrize(
    ("specs", "others", "settings", "why"),
    [
        ([], 4, {}, "no layer can be compressed"),
        (["spec"] * 4, 4, {}, "4 other layers hold a cache of another kind"),
        (["spec", "another"], 0, {}, "differ in shape"),
        (["spec"] * 4, 0, {"override": 100}, "--num-gpu-blocks-override"),
        (["spec"] * 4, 0, {"unified": True}, "--disable-hybrid-kv-cache-manager"),
    ],
)
def test_one_group_has_a_reason(specs, others, settings, why):
    found = chosen(None, specs, others, (), config(**settings))
    assert found.groups == 1 and why in found.why


def test_layers_of_a_kind_stay_together():
    assert bundled([4], 2) == [(0, 1), (2, 3)]
    assert bundled([4], 4, KSA) == [(0,), (1,), (2,), (3,)]
    assert bundled([4], 2, ("a", "b", "a", "b")) == [(0, 2), (1, 3)]
    assert bundled([0], 1) == [()]


def test_every_pipeline_stage_has_its_part_of_each_group():
    assert bundled([4, 2], 2) == [(0, 1, 4), (2, 3, 5)]
    assert bundled([2, 2], 1) == [(0, 1, 2, 3)]
    assert chosen(None, ["spec"] * 8, 0, (), config(), [4, 4]).groups == 2
    found = chosen(None, ["spec"] * 30, 0, (), config(), [7, 8, 8, 7])
    assert found == (1, "7 and 8 and 8 and 7 layers make no 2 or 3 bundles of equal size")


@pytest.mark.parametrize(("counts", "says"), [([4], "the 4 comp"), ([6, 4], "the 6, 4 .* each of 2 pipeline stages")])
def test_groups_that_do_not_divide_the_layers_are_refused(counts, says):
    with pytest.raises(ValueError, match=f"--kv-groups is 3, which does not divide {says}"):
        bundled(counts, 3)
