"""Draw images from a trained pipeline: python scripts/sample.py, or one of yours with --pipeline runs/…/pipeline."""

from pipelines.commands.sample import main

if __name__ == "__main__":
    main()
