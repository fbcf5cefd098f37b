"""One file a command: its options, and the flow that it starts. Only `cli.py` imports this room.

Belongs here: options, their help and checks, what a command prints. Does not: work that another room could call.
"""
