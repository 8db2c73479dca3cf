"""Pipeline parallelism: what earlier stages measured and found goes with a step's hidden states to the last one.

The scheduler hears the last stage only. A step's plans run on all stages before its tokens do, so what they find is
known when a stage hands on its hidden states, and arrives with the output of the same step.
"""

from typing import Any

from vllm.sequence import IntermediateTensors

from kvserve.channels import Feedback, take_earlier, with_earlier
from kvserve.engine.compactor import Compactor
from kvserve.startup.stages import Stages


class Staged:
    """Mixed in front of vLLM's runners: a place between two stages."""

    kv: Compactor | None = None
    kv_stages: Stages
    _kv_heard: Feedback | None = None  # of the stages before this one, in the running step

    def execute_model(
        self, scheduler_output: Any, intermediate_tensors: IntermediateTensors | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        if self.kv is not None and intermediate_tensors is not None:
            self._kv_heard = take_earlier(intermediate_tensors)
        output = super().execute_model(scheduler_output, intermediate_tensors, *args, **kwargs)  # type: ignore[misc]
        if self.kv is None or not isinstance(output, IntermediateTensors) or kwargs.get("dummy_run"):
            return output
        ranks = self.vllm_config.parallel_config.tensor_parallel_size  # type: ignore[attr-defined]
        return with_earlier(output, self._kv_said(self.kv), ranks)

    def _kv_said(self, kv: Compactor) -> Feedback | None:
        """What this stage and those before it have to say, None if nothing; it is said once."""
        heard, self._kv_heard = self._kv_heard, None
        own = kv.take_feedback()
        return own.after(heard) if own and heard else own or heard
