"""Settings that must be in place before vLLM is imported anywhere in the test process."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from more, and spin on busy machines
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
