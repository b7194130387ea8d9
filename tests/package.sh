#!/usr/bin/env bash
# Install the wheel in an empty environment, and run its commands from another folder: see make package.
# usage: tests/package.sh PYTHON WHEEL DATA
set -euo pipefail
python=$1 wheel=$(realpath "$2") data=$(realpath "$3")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/venv"
bin=$folder/venv/bin
cd "$folder"

fails_with() { # what, command …: it ends with status 2 and one line that holds what
    local what=$1 lines status=0
    shift
    lines=$("$@" 2>&1 >/dev/null) || status=$?
    if [ $status -ne 2 ] || [ "$(wc -l <<<"$lines")" -ne 1 ] || ! grep -qF "$what" <<<"$lines"; then
        printf '%s ended with status %s, not in one line with "%s":\n%s\n' "$*" $status "$what" "$lines"
        exit 1
    fi
}

"$bin/pip" install --quiet "$wheel"
if "$bin/python" -c "import scripts" 2>/dev/null || "$bin/python" -c "import configs" 2>/dev/null; then
    echo "the wheel installs a top-level scripts or configs"
    exit 1
fi
"$bin/denoiser-sample" --num_images 4
"$bin/python" -c "import numpy; numpy.save('pictures.npy', numpy.random.default_rng(0).integers(256, size=(20, 16, 16), dtype='uint8'))"
options=(--data.root "$data" --training.max_steps 4 --training.evaluation_images 100 --tracking.mode disabled)
"$bin/denoiser-train" --config smoke "${options[@]}" --output_dir one
"$bin/accelerate" launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
    -m pipelines.commands.train --config smoke "${options[@]}" --output_dir two
cmp one/pipeline/unet/diffusion_pytorch_model.safetensors two/pipeline/unet/diffusion_pytorch_model.safetensors
"$bin/denoiser-sample" --pipeline one/pipeline --num_images 4 --steps 2 --output two.png
"$bin/denoiser-distill" --config distill "${options[@]}" --distillation.denoising_steps 1 --sampling.num_images 4
"$bin/denoiser-prepare" --data.root sets --data.source "$PWD/pictures.npy" --data.size 8 | tail -1
fails_with "pip install -e '.[datasets]'" "$bin/denoiser-prepare" --data.source nobody/nothing
fails_with "pip install -e '.[restore]'" "$bin/denoiser-restore" denoise --noise 0.5
fails_with "pip install -e '.[eval]'" "$bin/denoiser-evaluate" --pipeline teacher
fails_with "unknown option 'config_'" "$bin/denoiser-train" --config_ smoke
"$bin/pip" install --quiet "$wheel[eval,restore]"
"$bin/denoiser-restore" inpaint --hole 6 --num_images 2 --data.root "$data"
"$bin/denoiser-evaluate" --pipeline one/pipeline --data.root "$data" --num_images 2000 --seeds 1 --steps 2 \
    --sections '[distances]' | tail -2
echo "the wheel works in an empty environment"
