"""What `python -m bench.cuda` makes of answers; the answers themselves need a GPU."""

from bench import cuda
from bench.cuda_checks import EAGER, GRAPHS, STOCK, Found, GpuAnswer, compared

FULL = GpuAnswer([1, 2], [-0.5, -0.25], {}, [])
RECORD = {"kept_tokens": 8.0, "logical_tokens": 32, "resident_bytes": 1, "full_bytes": 4, "compactions": 1}
KEPT = GpuAnswer([3, 4], [-1.0, -1.0], RECORD, [(0, 32, [[0, 31]])], 1, 1)


def found(policy: GpuAnswer = KEPT, plain: GpuAnswer = FULL) -> Found:
    named = {"none": FULL, "snapkv": policy}
    return Found(named, named, [plain], {"kvzip": "no tokenizer"})


def of(**changed: Found) -> tuple[list[dict[str, object]], list[str]]:
    return compared({STOCK: found(), EAGER: found(), GRAPHS: found(), **changed})


def test_nothing_is_said_of_equal_answers() -> None:
    rows, failures = of()
    assert not failures
    assert rows[1] == {
        "policy": "snapkv", "kept": 8.0, "of": 32, "bytes": 0.25, "compactions": 1, "graphs": "1 of 1",
        "same answer": "yes", "same kept": "yes", "difference": 0.0,
    }  # fmt: skip


def test_each_difference_is_a_failure() -> None:
    for changed in (
        KEPT._replace(tokens=[3, 5]),
        KEPT._replace(kept=[(0, 32, [[1, 31]])]),
        KEPT._replace(record={"error": "it failed"}),
    ):
        assert of(**{GRAPHS: found(changed)})[1]
    assert "stock" in of(**{GRAPHS: found(plain=FULL._replace(tokens=[1, 9]))})[1][0]
    assert "stock" in of(**{GRAPHS: found(plain=FULL._replace(logprobs=[-0.5, -0.3]))})[1][0]


def test_the_table_names_what_was_refused() -> None:
    rows, failures = of()
    record = {
        "card": "a card", "triton": "3", "versions": {}, "backend": "TRITON_ATTN", "date": "today", "commit": "c",
        "tables": {"(a)": rows}, "failures": failures, "refused": {"kvzip": "no tokenizer"},
    }  # fmt: skip
    said = cuda.text(record)
    assert "| snapkv | 8 | 32 | 0.25 |" in said and "kvzip was not asked: no tokenizer" in said
