"""What is read from vLLM's files is what vLLM has when it runs."""

import zipfile

import pytest

from kvserve.startup import guard
from kvserve.startup.overridden import SIGNATURES
from tests.kvserve.source_of_vllm import SourceOfVLLM

FILES = {
    "vllm/__init__.py": "if True:\n    from .inner import *\nimport vllm.inner.deep as short\n",
    "vllm/_version.py": "__version__ = version = '0.1'\n",
    "vllm/inner/__init__.py": "from .deep import Child, Base as Parent\nfrom torch import Tensor\n",
    "vllm/inner/deep.py": """
class Base(Generic[T]):
    def method(self, a, /, b, *args, c=1, **kwargs): ...
    async def inherited(self): ...
    @property
    def shown(self): ...
class Child(Base[int]):
    def method(self, b): ...
""",
}


@pytest.fixture(params=["folder", "wheel"])
def source(request, tmp_path):
    if request.param == "wheel":
        with zipfile.ZipFile(tmp_path / "vllm.whl", "w") as wheel:
            for name, text in FILES.items():
                wheel.writestr(name, text)
        return SourceOfVLLM(tmp_path / "vllm.whl")
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return SourceOfVLLM(tmp_path)


def test_methods_have_parameters(source):
    assert source.version() == "0.1"
    assert source.parameters("vllm.Child", "method") == "self b"
    assert source.parameters("vllm.inner.Parent", "method") == "self a b args c kwargs"
    assert source.parameters("vllm.inner.deep.Child", "inherited") == "self"
    assert source.parameters("vllm.Child", "shown") == "property"
    assert source.parameters("vllm.Child", "gone") is source.parameters("vllm.Gone", "method") is None


def test_names_are_followed_to_where_they_are_declared(source):
    assert source.find("vllm.Child").module == source.find("vllm.short").module == "vllm.inner.deep"
    assert source.find("vllm.inner.Tensor").module == "torch.Tensor"
    assert source.find("vllm.Tensor") is not None and source.find("vllm.inner.Gone") is None


def test_of_the_installed_vllm_it_says_what_the_guard_finds():
    source = SourceOfVLLM.installed()
    for owner, methods in SIGNATURES.items():
        for name in methods:
            assert source.parameters(owner, name) == guard._parameters(owner, name), f"{owner}.{name}"
    assert source.version().startswith(guard.SUPPORTED)
