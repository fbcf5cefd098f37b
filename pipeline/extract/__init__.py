"""Stage 1: videos and captions in, CLIP features out. Which frames (sampling), decoders, encoder, driver."""
