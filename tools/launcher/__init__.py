"""Sets up and runs everything on a machine without Docker: ``./userstream``.

It needs nothing but Python's standard library, because it makes the environment in which
the services run. In: the command line. Out: the processes it starts, and what it says.
"""
