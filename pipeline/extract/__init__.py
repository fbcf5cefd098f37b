"""Stage 1: videos and captions in, CLIP features out. Which frames (sampling), decoders, encoder, driver.

Encoder and decoding processes share the cores of a machine without a GPU. By default OpenMP's threads spin while they
wait for each other, and steal the cores from the decoders that they wait for: a small encoder then ran 13 times slower
on two busy cores. The policy is read when torch is loaded, so it is set here, before stage 1 imports it.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
