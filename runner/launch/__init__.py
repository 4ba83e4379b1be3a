"""A sweep, from the command line to jobs on a cluster or this machine; read launch.py, then task.py."""
