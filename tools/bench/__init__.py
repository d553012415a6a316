"""Measures UserStream against what people would pick instead: ``./userstream bench``.

In: a private stack that it starts itself, and the peer in ``tools/bench/peer``. Out: a table, JSON,
and the results in ``docs/performance.md``.
"""
