"""Restore or change images with a trained pipeline: python scripts/restore.py denoise --noise 0.5."""

from pipelines.commands.restore import main

if __name__ == "__main__":
    main()
