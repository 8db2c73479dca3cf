"""A plug-in of vLLM for servers of tests: their engine is forked, and imports nothing a second and a third time.

vLLM starts the processes of an engine anew on CPUs, and each imports for ten seconds. With this folder's parent on
PYTHONPATH they are copies of the process that answers HTTP. Not for serving, and not where a start is what is tested.
"""

from vllm import envs


def fork() -> None:
    envs.environment_variables["VLLM_WORKER_MULTIPROC_METHOD"] = lambda: "fork"
