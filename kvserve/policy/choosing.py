"""Which tokens a policy keeps: what it reads of a layer, and what it makes of that."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor

from kvserve.policy.errors import PolicyError
from kvserve.policy.evidence import Evidence, OutputWeight, Rotation, SidePass, checked, find
from kvserve.policy.types import Facts, Merged
from kvserve.policy.view import LayerView


class Choosing(BaseModel):
    """Workers ask for this half of a policy, each for the KV heads that it has."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    reads: ClassVar[tuple[Evidence, ...]] = ()  # the evidence that does not depend on parameters
    compresses: ClassVar[bool] = True
    per_head: ClassVar[bool] = True  # whether the KV heads of a layer choose for themselves

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Refuse unknown evidence when the class is made. Raises TypeError."""
        checked(f"{cls.__name__}.reads", cls.reads)

    @model_validator(mode="after")
    def _evidence_is_known(self) -> Self:
        checked(f"{type(self).__name__}.evidence", self.evidence)
        return self

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """All that it reads; override it where that depends on parameters."""
        return self.reads

    @property
    def salt(self) -> str | None:
        """What the keys of a prompt depend on beside model and tokens: requests that differ share no prefix."""
        return None

    # -- knowing its server --------------------------------------------------------------------------

    def check(self, facts: Facts) -> None:
        """Raise PolicyError if this server cannot serve these parameters. Whoever overrides it calls this one too."""
        problem = None
        if self.compresses and not facts.num_layers:
            problem = "has nothing to compress: no layer of this model has full attention; send 'full'"
        elif find(SidePass, self.evidence) and facts.side_pass_problem is not None:
            problem = f"has the model repeat the prompt, which cannot be done here: {facts.side_pass_problem}"
        elif find(Rotation, self.evidence) and facts.rope_problem is not None:
            problem = f"undoes the rotation of queries or keys (RoPE), but {facts.rope_problem}"
        elif find(OutputWeight, self.evidence) and facts.output_problem is not None:
            problem = f"weighs values by the layer's output projection, but {facts.output_problem}"
        if problem:
            raise PolicyError(f"kv_policy {self.name!r} {problem}", param="kv_policy.name", reason="unsupported")

    def settled(self, facts: Facts) -> Self:
        """This policy, knowing the server that it has passed `check` for."""
        return self

    def for_prompt(self, tokens: int) -> Self:
        """This policy, `settled`, knowing too how many tokens the prompt of its request has."""
        return self

    # -- which ---------------------------------------------------------------------------------------

    def select(self, view: LayerView, keep: int) -> Tensor | Merged:
        """Slots that stay: (H, keep) int64, each row ascending and without repeats."""
        raise NotImplementedError

    def choose(self, views: Sequence[LayerView], keeps: Sequence[int]) -> Iterator[Tensor | Merged]:
        """`select` for all layers of a plan, in their order; override it where layers decide together."""
        return (self.select(view, keep) for view, keep in zip(views, keeps, strict=True))

    # -- wire ----------------------------------------------------------------------------------------

    def wire(self) -> dict[str, Any]:
        """Values that `kvserve.policy.request.parse` turns into an equal policy."""
        return {"name": self.name, **self.model_dump()}
