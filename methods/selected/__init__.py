"""Training a selection of the model's own parameters: everything, nothing but the head, or the biases."""
