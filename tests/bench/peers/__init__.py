"""What people use today to replace one version of a server by another, each with the application of this service.

Begin with `peer.py`. Every program that is started here listens on loopback alone, and is ended by its pid.
"""
