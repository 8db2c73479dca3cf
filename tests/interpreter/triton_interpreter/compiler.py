"""Triton asks for a compiler; the interpreter compiles nothing."""

from typing import Any

from triton.backends.compiler import BaseBackend


class NoCompiler(BaseBackend):
    """Takes the target, and has nothing else to say."""

    @staticmethod
    def supports_target(target: Any) -> bool:
        return bool(target.backend == "cpu")

    def hash(self) -> str:
        return "interpreter"

    def parse_options(self, options: Any) -> Any:
        return options

    def add_stages(self, stages: Any, options: Any, language: Any = None) -> None:
        """None."""

    def load_dialects(self, context: Any) -> None:
        """None."""

    def get_module_map(self) -> dict[str, Any]:
        return {}

    def get_codegen_implementation(self, options: Any) -> dict[str, Any]:
        return {}

    def pack_metadata(self, metadata: Any) -> tuple[()]:
        return ()
