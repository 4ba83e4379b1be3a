"""Which of a model's own parameters train."""

from dataclasses import dataclass, field


@dataclass
class SelectedConfig:
    """Full fine-tuning, a trained head, or BitFit: PEFT has no config for methods that add nothing to the model.

    Args:
        parameters: glob patterns of parameter names to train, besides the head: `["*"]` is full fine-tuning, `[]`
            trains the head alone. Each must match something.
        fallback: patterns in their place where none of them matches.
    """

    parameters: list[str] = field(default_factory=list)
    fallback: list[str] = field(default_factory=list)
