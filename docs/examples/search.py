"""Search a workspace from Python: python docs/examples/search.py WORKSPACE SENTENCE"""

import sys

from pipeline import Retriever

workspace, sentence = sys.argv[1:]
with Retriever.open(workspace) as retriever:  # the live index, its head and its encoder, warm
    hits = retriever.search([sentence], top=10, merge=True)[0]
for hit in hits:
    print(f"{hit.score:.3f}  {hit.path}  at {hit.moment:.1f} s")
