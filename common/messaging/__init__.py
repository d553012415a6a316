"""What becomes of a message: consuming, dispatching, retries and outages.

Start reading at ``dispatcher``; ``wiring`` is what services call.
"""
