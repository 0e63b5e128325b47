"""Says what a Eureka server does and does not do, by asking it and by running real clients.

It knows the protocol and nothing of any server's code; point it at any server's URL.
"""
