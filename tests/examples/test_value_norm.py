"""The example package is installed as a stranger would, listed, and served."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "value-norm"

SERVE = """
import json
from tests.engine import harness
llm = harness.start(blocks=128, max_model_len=1024)
policies = ["any-tokens:0.3", {"name": "value-norm", "budget": 100, "power": 0.5}, None]
outputs = harness.generate(llm, [harness.tokens(400)] * 3, policies, 20)
print(json.dumps([(o.kv_transfer_params or {}).get("kvserve") for o in outputs]))
"""


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    """An environment that sees the example installed in a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "value_norm.py"):  # a copy: building leaves files behind
        (source / name).write_text((EXAMPLE / name).read_text())
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, timeout=120)
    return {**os.environ, "PYTHONPATH": str(target)}


def run(env, *command):
    done = subprocess.run(
        [sys.executable, *command], env=env, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_it_is_listed(env):
    listed = json.loads(run(env, "-m", "server.cli.main", "policies", "--json"))["data"]
    assert {"any-tokens", "value-norm", "scissorhands"} <= {p["name"] for p in listed}


def test_it_is_served(env):
    random, weighted, full = json.loads(run(env, "-c", SERVE).strip().splitlines()[-1])
    assert (random["policy"], random["compactions"]) == ("any-tokens", 1)
    assert weighted["kept_tokens"] == 119  # 100 of the prompt, 19 generated
    assert full is None


def test_it_fits_on_a_screen():
    source = (EXAMPLE / "value_norm.py").read_text()
    policy = source[source.index("class ValueNorm") :]
    assert len(policy.splitlines()) <= 40
