"""GLUE from the hub, from a local folder in either layout, or from the embedded demo."""
