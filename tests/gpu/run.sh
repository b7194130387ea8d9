#!/usr/bin/env bash
# All that needs a GPU, in about six minutes: versions, tests, speeds.
cd "$(dirname "$0")/../.." || exit
export PYTHONUNBUFFERED=1
nvidia-smi -L
"${PYTHON:=python3}" - <<'VERSIONS'
import platform
from importlib.metadata import version

names = ("torch", "diffusers", "accelerate", "numpy", "huggingface_hub")
print("python", platform.python_version(), *(f"{name} {version(name)}" for name in names))
VERSIONS
timeout 390 "$PYTHON" -m pytest -m gpu tests/gpu --tb=short --show-capture=stderr --durations=12
tests=$?
timeout 240 "$PYTHON" -m tests.gpu.speed || exit
exit $tests
