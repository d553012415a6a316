"""In: registrations from ``user.registration``.

Out: stored users (database_service), mail requests on ``email.notifications``.
"""
