"""What services say to each other; start reading here.

``base`` says what a contract is, ``rules`` what a valid value is; then one module per thing:
``registrations``, ``notifications``, ``reports``, ``users``.
"""
