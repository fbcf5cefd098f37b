"""Video files to frames: fetching, sampling, selective decoding, and the processes that decode.

Belongs here: everything that opens a video (PyAV, the ffmpeg program). Does not: encoders (`pipeline.clip`), what a
run over many videos does with failures (`pipeline.extract`).
"""
