"""A Triton backend for CPUs, by name only: Triton's own interpreter runs the kernels (TRITON_INTERPRET=1).

vLLM's V2 model runner needs Triton, and vLLM believes in Triton on a CPU if there is a backend of that name. With this
folder's parent on PYTHONPATH, tests run the runner that GPUs have. Slow, and not for serving.
"""
