"""Judge a trained pipeline, or images: python scripts/evaluate.py --pipeline runs/fashion_mnist/pipeline."""

from pipelines.commands.evaluate import main

if __name__ == "__main__":
    main()
