"""The page and the REST API over a warm retriever.

Belongs here: routes, what guards them, batching of queries, media for browsers, the page. Does not: how a search works
(`pipeline.retrieve`), decoding (`pipeline.video`).
"""
