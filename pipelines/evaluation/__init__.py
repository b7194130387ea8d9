"""What judges a set of samples: feature spaces, and distances between the features of two sets."""
