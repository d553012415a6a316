"""Fault-injection tests: break everything that can break while people register, and count by ids.

In: a seed. Out: what was lost, doubled or left in stuck, which must be nothing.
"""
