"""In: people with a browser, programs with the API.

Out: registrations on ``user.registration``; the journey of each, live.
"""
