import subprocess
import sys


def test_importing_denoiser_pulls_in_neither_wandb_nor_matplotlib():
    code = "import sys, denoiser; print([name for name in ('wandb', 'matplotlib') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
