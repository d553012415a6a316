"""The fault bench: breaks everything that can break while people register, and counts by ids.

In: a seed. Out: what was lost, doubled or left in stuck, which must be nothing.
"""
