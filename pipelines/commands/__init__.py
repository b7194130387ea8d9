"""The commands: train, sample, evaluate, restore and distill, from the scripts or the installed package."""
