#!/usr/bin/env python3
"""Make the embedded model: train a tokenizer and a one-million-parameter Llama on the demo language.

    python scripts/make_tiny_llama.py --out runner/demo/tiny_llama

Takes about half an hour on one core. Seeds are fixed, so the same versions of torch and tokenizers on the same kind of
machine write the same files.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lorsa.runner.demo.data import demo_corpus

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")
UNK, BOS, EOS, PAD = range(4)
MAX_POSITIONS = 512
# How much a token counts in the loss. The first sentence of a document can hardly be predicted,
# and an answer is one word that takes understanding all the rest.
OPENING_WEIGHT, ANSWER_WEIGHT = 0.3, 10.0
# Corpus seeds: what the tokenizer, the model and the final check read.
TOKENIZER_SEED, TRAINING_SEED, HELD_OUT_SEED = 1, 2, 3


def train_tokenizer(vocabulary: int, n_sentences: int) -> PreTrainedTokenizerFast:
    """Train a lower-casing byte-level BPE whose pairs read ``<s> a </s> b </s>``, as documents do."""
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS[UNK]))
    tokenizer.normalizer = normalizers.Lowercase()
    # With the prefix space, a word is one token at the start of a sentence as inside it; the decoder drops it again.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(demo_corpus(n_sentences, TOKENIZER_SEED), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=SPECIAL_TOKENS[UNK],
        bos_token=SPECIAL_TOKENS[BOS],
        eos_token=SPECIAL_TOKENS[EOS],
        pad_token=SPECIAL_TOKENS[PAD],
        model_max_length=MAX_POSITIONS,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama of about a million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, document: str) -> list[tuple[int, float]]:
    """A document as tokens with their weights in the loss: each sentence ends in ``</s>``."""
    tokens, weight = [(BOS, 0.0)], OPENING_WEIGHT
    for line in document.splitlines():
        tokens += [(token, weight) for token in tokenizer.encode(line, add_special_tokens=False)]
        tokens.append((EOS, 1.0))
        weight = ANSWER_WEIGHT if line.endswith("?") else 1.0
    return tokens


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, n_sentences: int, size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and weights of documents of similar length, one document a row, so that none reads another."""
    documents = demo_corpus(n_sentences, seed)
    shuffle = random.Random(seed)
    # Sorting within a large pool keeps padding low, and shuffling its batches keeps lengths mixed over time.
    while pool := list(islice(documents, 64 * size)):
        rows = sorted((encode(tokenizer, document) for document in pool), key=len)
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
        shuffle.shuffle(chunks)
        for chunk in chunks:
            longest = max(map(len, chunk))
            padded = [row + [(PAD, 0.0)] * (longest - len(row)) for row in chunk]
            yield (
                torch.tensor([[token for token, _ in row] for row in padded]),
                torch.tensor([[weight for _, weight in row] for row in padded]),
            )


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean of the cross-entropy per token."""
    # Padding comes last, where causal attention lets no other token see it: no mask is needed.
    logits = model(input_ids=ids).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()


def pretrain(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> None:
    """Train as a language model, in one pass over text that never repeats.

    Muon on the layers' matrices and AdamW on the rest: AdamW alone took about half as many steps again.
    """
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed_tokens" in name]
    optimizers = (
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=0.3 * args.lr, betas=(0.9, 0.98), weight_decay=0.0),
    )
    warmup = max(1, args.steps // 20)

    def rate(step: int) -> float:
        """Warm up, hold, and from half-way on fall linearly."""
        return min((step + 1) / warmup, 1.0, 2 * (1 - step / args.steps))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    model.train()
    # No kind of document has more than a dozen sentences, so this many are enough for all steps.
    stream = batches(tokenizer, TRAINING_SEED, 12 * args.steps * args.batch_size, args.batch_size)
    start, tokens, recent = time.monotonic(), 0, []
    for step, (ids, weights) in enumerate(islice(stream, args.steps), 1):
        loss = loss_of(model, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        tokens += int((ids != PAD).sum())
        recent.append(loss.item())
        if step % args.log_every == 0 or step == args.steps:
            seconds = time.monotonic() - start
            mean = sum(recent) / len(recent)
            print(f"step {step}/{args.steps}  loss {mean:.3f}  {tokens} tokens  {seconds:.0f} s", flush=True)
            recent.clear()


@torch.inference_mode()
def held_out_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, size: int) -> float:
    """Mean cross-entropy per token on documents that were not trained on, all tokens weighing the same."""
    model.eval()
    held_out = batches(tokenizer, HELD_OUT_SEED, 2000, size)
    losses = [loss_of(model, ids, (ids != PAD).float()).item() for ids, _ in held_out]
    return sum(losses) / len(losses)


def main() -> None:
    """Train, check and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default_out = Path(__file__).resolve().parents[1] / "runner" / "demo" / "tiny_llama"
    parser.add_argument("--out", type=Path, default=default_out, help="folder to write (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5000, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="documents a step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=0.02, help="peak learning rate of Muon (default: %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=1024, help="tokens (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads; the result depends on it (default: %(default)s)"
    )
    parser.add_argument(
        "--log-every", type=int, default=100, help="steps between lines of progress (default: %(default)s)"
    )
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    tokenizer = train_tokenizer(args.vocabulary, n_sentences=50_000)
    model = make_model(tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"tokenizer: {len(tokenizer)} tokens; model: {parameters} parameters")
    untrained = held_out_loss(model, tokenizer, args.batch_size)
    print(f"before training: held-out loss {untrained:.3f} (uniform: {math.log(len(tokenizer)):.3f})")
    pretrain(model, tokenizer, args)
    print(f"after training: held-out loss {held_out_loss(model, tokenizer, args.batch_size):.3f}")

    args.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    # Nothing here generates text, and a generation config would be one more file to explain.
    (args.out / "generation_config.json").unlink(missing_ok=True)
    for file in sorted(args.out.iterdir()):
        print(f"wrote {file} ({file.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
