"""Stage 2: train a head on cached features."""
