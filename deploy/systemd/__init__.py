"""The service manager: commands, unit files, transient timers, and a private manager for the sandbox.

Functions build argv lists; `process.run` is what runs them. Begin with `systemctl.py`.
"""
