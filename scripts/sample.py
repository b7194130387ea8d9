"""Sample images from a trained pipeline: python scripts/sample.py --pipeline runs/fashion_mnist/pipeline."""

from pipelines.commands.sample import main

if __name__ == "__main__":
    main()
