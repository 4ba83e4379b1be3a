"""The embedded default: demo data for every task, and a tiny Llama that has read the same language."""
