"""Logs of runs, made up."""

import json


def lines(first: int, last: int) -> str:
    """Lines of a log: the loss every ten updates, and a score every fifty, as the Recorder writes them."""
    text = ""
    for step in range(first, last + 1, 10):
        epoch = step / 50
        text += json.dumps({"step": step, "epoch": epoch, "loss": 1 / step, "num_input_tokens_seen": step * 8}) + "\n"
        if step % 50 == 0:
            scores = {"primary": epoch / 10, "dev_accuracy": epoch / 10}
            text += json.dumps({"step": step, "epoch": epoch, "num_input_tokens_seen": step * 8, **scores}) + "\n"
    return text
