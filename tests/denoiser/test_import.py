import subprocess
import sys


def test_importing_denoiser_pulls_in_neither_wandb_nor_matplotlib():
    code = "import sys, denoiser; print([name for name in ('wandb', 'matplotlib') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code]).decode().strip() == "[]"
