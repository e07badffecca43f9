"""The service manager: systemctl commands, unit files, transient timers, and a private manager for the sandbox.

Functions build argv lists, and only `process.py` starts processes. Begin with `systemctl.py`.
"""
