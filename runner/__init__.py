"""From a config to a recorded result. Read job.py first: it tells the story in order."""
