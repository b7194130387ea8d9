"""Distil a trained denoiser into one that samples in 1, 2 or 4 calls."""

from pipelines.commands.distill import main

if __name__ == "__main__":
    main()
