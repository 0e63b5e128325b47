"""What an operator types: commands that ask a server that runs, over its native API.

They need nothing of the server but its URL, and work from any machine.
"""
