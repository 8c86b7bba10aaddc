"""Base models: `registry` says which there are, `family` knows how each architecture encodes and predicts."""
