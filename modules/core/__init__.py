"""The ground: errors, paths, settings, hashes, progress, hardware questions. No neural network, no image, and no torch at import."""
