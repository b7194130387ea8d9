"""Prepare an image set ahead of a training: python scripts/prepare_data.py --data.source my_images --data.size 32."""

from pipelines.commands.prepare import main

if __name__ == "__main__":
    main()
