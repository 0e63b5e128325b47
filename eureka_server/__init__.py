"""The server put together: settings, accounts, the two doors, and what a start needs.

The top floor: it knows every other package, and none of them knows it.
"""
