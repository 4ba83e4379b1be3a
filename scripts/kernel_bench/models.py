"""A decoder layer, and whole training steps: the frozen base and each adapter on all its linear modules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kernel_bench.measure import BASE, Bench, Contender
from kernel_bench.ops import orthonormal
from kernel_bench.shapes import LLAMA_7B, SMOLLM2, TINY, Shape
from lorsa.kernels import dispatch

if TYPE_CHECKING:
    from peft import PeftConfig

# transformers, PEFT and the tuner are imported where they are needed: the operators' section needs torch alone.

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FORMS = {
    "subspace": {"space": "subspace", "rotate": "selected"},
    "selected": {"space": "ambient", "rotate": "selected"},
    "all": {"space": "ambient", "rotate": "all"},
}


class DecoderLayer(nn.Module):
    """One decoder layer with random weights, on whole sequences of a fixed length."""

    def __init__(self, shape: Shape, tokens: int, dtype: torch.dtype, device: str) -> None:
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

        super().__init__()
        config = shape.config()
        with torch.device(device):
            self.layer = LlamaDecoderLayer(config, layer_idx=0).to(dtype)
            cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1, dtype=dtype), torch.arange(tokens)[None])
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(self, x: Tensor) -> Tensor:
        """Turn (1, tokens, hidden) into as much."""
        return self.layer(x, position_embeddings=(self.cos, self.sin))


def layer(bench: Bench, tokens: int) -> None:
    """A decoder layer of LLaMA-2 7B: forward and backward, the input's gradient included."""
    shape = TINY if bench.quick else LLAMA_7B
    base_flops = flops_of_base(shape.modules(), tokens, tokens, shape.hidden)
    for dtype in (torch.float32, torch.bfloat16):
        base = DecoderLayer(shape, tokens, dtype, bench.device).requires_grad_(False)
        x = bench.random(1, tokens, shape.hidden, dtype=dtype)
        grad = bench.random(1, tokens, shape.hidden, dtype=dtype, grad=False)

        def contender(name: str, model: nn.Module, x: Tensor = x, grad: Tensor = grad) -> Contender:
            # Without a task PEFT's wrapper passes by the tuner's own forward pass, which shares the cores.
            run = getattr(model, "base_model", model)

            def back(y: Tensor) -> None:
                y.backward(grad)
                model.zero_grad()
                x.grad = None

            return Contender(name, lambda: run(x), back, constants(model))

        contenders = models(bench, base, contender, shape.modules(), tokens, base_flops)
        # LoRA is what the others are measured by.
        contenders.sort(key=lambda contender: not contender.name.startswith("LoRA"))
        sizes = f"hidden {shape.hidden}, intermediate {shape.intermediate}, {tokens} tokens"
        bench.compare(f"decoder layer of {shape.name}", sizes, dtype, contenders, seconds=45)


def step(bench: Bench, tokens: int) -> None:
    """Whole training steps of SmolLM2-135M on 16 sequences (one of 32 tokens for each 512 of `tokens`)."""
    from transformers import AutoModelForSequenceClassification

    shape = TINY if bench.quick else SMOLLM2
    length = tokens // 16
    config = shape.config(tie_word_embeddings=True, num_labels=2, pad_token_id=0)
    with torch.device(bench.device):
        base = AutoModelForSequenceClassification.from_config(config).requires_grad_(False).train()
        batch = {
            "input_ids": torch.randint(1, shape.vocabulary, (16, length)),
            "attention_mask": torch.ones(16, length, dtype=torch.long),
            "labels": torch.randint(0, 2, (16,)),
        }
    base.enable_input_require_grads()

    def contender(name: str, model: nn.Module) -> Contender:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-6) if trained else None

        def back(loss: Tensor) -> None:
            loss.backward()
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()

        return Contender(name, lambda: model(**batch).loss, back, constants(model))

    modules = shape.modules() * shape.layers
    base_flops = flops_of_base(modules, 16 * length, length, shape.hidden * shape.layers)
    contenders = models(bench, base, contender, modules, 16 * length, base_flops, "SEQ_CLS")
    sizes = f"{len(modules)} modules, 16 x {length} tokens"
    bench.compare(f"training step of {shape.name}", sizes, torch.float32, contenders, seconds=45)


def models(
    bench: Bench,
    base: nn.Module,
    contender: Callable[[str, nn.Module], Contender],
    modules: list[tuple[int, int]],
    tokens: int,
    base_flops: float,
    task: str | None = None,
    k: int = 64,
) -> list[Contender]:
    """Return the frozen base, and it with each adapter on all linear modules."""
    from peft import LoraConfig, PsoftConfig

    from lorsa.methods.lorsa import LorsaConfig

    k, lora_r = (8, 2) if bench.quick else (k, 8)
    # The time does not depend on how exact its factors are: random weights have no principal components to speak of.
    psoft = PsoftConfig(
        r=k, psoft_alpha=k, psoft_svd="lowrank", psoft_svd_lowrank_niter=0, task_type=task, target_modules=list(MODULES)
    )
    lora = LoraConfig(r=lora_r, task_type=task, target_modules=list(MODULES))
    result = [
        contender(BASE, base),
        contender(f"LoRA r={lora_r}", adapted(base, lora)),
        contender(f"PSOFT r={k}", adapted(base, psoft)),
    ]
    names = [name for name, _ in base.named_modules() if name.endswith(MODULES)]
    for form, options in FORMS.items():
        # "saved" leaves the factors to be loaded: of random weights no basis need be taken, random columns do.
        config = LorsaConfig(
            k=k,
            r=1,
            task_type=task,
            target_modules=list(MODULES),
            components={name: list(range(k)) for name in names},
            factors="saved",
            **options,
        )
        model = adapted(base, config)
        give_factors(model)
        extra = sum(adapter_flops(form, *module, tokens, k, 1) for module in modules) / base_flops
        for compiled in (True, False) if bench.built else (False,):
            one = contender(f"LoRSA {form}, {'operators' if compiled else 'reference'}", model)
            one.forward, one.extra = on_operators(bench.device, compiled, one.forward), extra
            result.append(one)
    return result


def adapted(base: nn.Module, config: PeftConfig) -> nn.Module:
    """Return a model with adapters that shares the weights of `base`."""
    from peft import get_peft_model

    shared = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
    return get_peft_model(copy.deepcopy(base, shared), config)


def give_factors(model: nn.Module) -> None:
    """Fill in random orthonormal factors, and rotations that are away from zero."""
    from lorsa.methods.lorsa.layer import LorsaLinear

    for module in model.modules():
        if isinstance(module, LorsaLinear):
            for sides in (module.lorsa_U, module.lorsa_V):
                sides["default"].copy_(orthonormal(*sides["default"].shape, "cpu"))
            module.lorsa_s["default"].copy_(torch.linspace(2, 1, len(module.lorsa_s["default"])))
            for P in (module.lorsa_P_out, module.lorsa_P_in):
                nn.init.normal_(P["default"], std=1e-3)


def on_operators(device: str, compiled: bool, forward: Callable[[], Any]) -> Callable[[], Any]:
    """Return a forward pass that takes the compiled operators, or the reference."""

    def run() -> Any:
        dispatch._compiled[device] = compiled
        return forward()

    return run


def constants(model: nn.Module) -> list[Tensor]:
    """Return a model's parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


def flops_of_base(modules: list[tuple[int, int]], tokens: int, length: int, width: int) -> float:
    """Return the FLOPs of a frozen model's forward and backward pass: W x and W^T dy, and attention.

    Attention on sequences of `length` takes two products forward and five backward of 2 `length` FLOPs per token and
    each of `width` features, counted as if there were no causal mask: the rate comes out high, the floor low.
    """
    return sum(4.0 * tokens * m * n for m, n in modules) + 14.0 * tokens * length * width


def adapter_flops(form: str, m: int, n: int, tokens: int, k: int, r: int) -> float:
    """Return the FLOPs that a form adds to a frozen (m, n) module's forward and backward pass.

    Only its thin products, the fewest that will do; sums, and matrices without a side of `tokens`, m or n, are left
    out. A product of (a, b) and (b, c) is 2 a b c.
    """
    sides = m + n
    # Forward V^T x and U h, backward U^T dy and V dz.
    spectral = 4.0 * tokens * sides * k
    if form == "all":
        # A rotation of n: x [P, Q] and its way back, dy [P, Q] and its way back, and the gradients of P and Q by both.
        return spectral + 6 * 2.0 * tokens * sides * 2 * r
    if form == "subspace":
        # C z; backward C^T g and g z^T.
        return spectral + 6.0 * tokens * k * k
    width = k + 2 * r
    sided = 4.0 * tokens * sides * width + 6.0 * tokens * width * width
    # The gradients of the sides, dy^T h and x^T dz; Y^T U and Y^T V, and their gradients.
    return sided + 2.0 * tokens * sides * 2 * r + 2 * 2.0 * sides * 2 * r * k
