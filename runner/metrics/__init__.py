"""GLUE's metrics, behind the interface of `evaluate`."""
