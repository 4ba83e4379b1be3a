"""What an experiment is: one YAML per choice, grouped by axis. Hydra reads this package as `pkg://lorsa.conf`."""
