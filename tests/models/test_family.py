"""Every shipped model: small, made by the plan in the code, as good as its card says, loadable by stock libraries."""

import json
from dataclasses import asdict

import pytest

pytest.importorskip("torch")

from models.tasks.generators import retrieval_prompt
from models.training.evaluate import CELLS, TaskCell, wilson
from models.training.family import FAMILY

MEMBERS = pytest.mark.parametrize("member", FAMILY.values(), ids=FAMILY)


def figures(member) -> list[TaskCell]:
    return [TaskCell(**cell) for cell in json.loads((member.folder / "accuracy.json").read_text())]


@MEMBERS
def test_the_weights_are_small(member):
    assert (member.folder / "model.safetensors").stat().st_size < 16e6


@MEMBERS
def test_the_plan_in_the_code_is_the_one_that_made_the_weights(member):
    recipe = json.loads((member.folder / "recipe.json").read_text())
    assert recipe["shape"] == asdict(member.shape)
    assert recipe["plan"] == json.loads(json.dumps(asdict(member.plan)))


@MEMBERS
def test_the_config_names_architecture_and_biases(member):
    config = json.loads((member.folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert config["attention_bias"] == member.shape.bias


@MEMBERS
def test_one_tokenizer_serves_the_family(member, mini):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (member.folder / name).read_bytes() == (mini / name).read_bytes()


@MEMBERS
def test_the_card_states_the_measured_figures(member):
    from models.training.evaluate import markdown

    assert markdown(figures(member)) in (member.folder / "README.md").read_text()


@MEMBERS
def test_the_figures_are_complete_and_their_intervals_right(member):
    cells = figures(member)
    for cell in cells:
        assert (cell.low, cell.high) == wilson(round(cell.exact * cell.items), cell.items)
    lengths = {cell.tokens for cell in cells}
    assert lengths >= {512, 1024}
    assert {(c.task, c.form) for c in cells} == set(CELLS)


@MEMBERS
def test_a_question_is_answered_in_stock_vllm(member):
    from tests.engine import harness

    llm = harness.start(kv=False, model=member.folder, dtype="bfloat16", max_model_len=1024)
    try:
        items = [retrieval_prompt(llm.get_tokenizer(), seed, 512) for seed in range(10)]
        said = llm.chat(
            [item.messages for item in items], harness.params(generate=40, ignore_eos=False), use_tqdm=False
        )
        assert sum(o.outputs[0].text == item.reply for o, item in zip(said, items, strict=True)) >= 9
    finally:
        harness.stop(llm)
