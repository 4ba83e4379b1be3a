#!/usr/bin/env python3
"""Make the embedded model: train a tokenizer and a one-million-parameter Llama on the demo language.

    python scripts/make_tiny_llama.py --out runner/demo/tiny_llama

Takes about ten minutes on one core. Seeds are fixed, so the same versions of torch and tokenizers on the same kind of
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


def encode(tokenizer: PreTrainedTokenizerFast, document: str) -> list[int]:
    """A document as token ids: each sentence ends in ``</s>``."""
    ids = [BOS]
    for line in document.splitlines():
        ids += [*tokenizer.encode(line, add_special_tokens=False), EOS]
    return ids


def batches(tokenizer: PreTrainedTokenizerFast, seed: int, n_sentences: int, size: int) -> Iterator[torch.Tensor]:
    """Batches of documents of similar length, one document a row, so that none reads another."""
    documents = demo_corpus(n_sentences, seed)
    shuffle = random.Random(seed)
    # Sorting within a large pool keeps padding low, and shuffling its batches keeps lengths mixed over time.
    while pool := list(islice(documents, 64 * size)):
        rows = sorted((encode(tokenizer, document) for document in pool), key=len)
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
        shuffle.shuffle(chunks)
        for chunk in chunks:
            longest = max(map(len, chunk))
            yield torch.tensor([row + [PAD] * (longest - len(row)) for row in chunk])


def loss_of(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy per token; padding counts nowhere."""
    # Padding comes last, where causal attention lets no other token see it: no mask is needed.
    return model(input_ids=batch, labels=batch.masked_fill(batch == PAD, -100)).loss


def pretrain(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> None:
    """Train as a language model: AdamW, warm-up, cosine decay, one pass over text that never repeats."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    warmup = max(1, args.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / warmup, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / args.steps)))
        ),
    )
    model.train()
    # A document has one sentence at least, so this many are enough for all steps.
    stream = batches(tokenizer, TRAINING_SEED, 8 * args.steps * args.batch_size, args.batch_size)
    start, tokens, mean = time.monotonic(), 0, 0.0
    for step, batch in enumerate(islice(stream, args.steps), 1):
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tokens += int((batch != PAD).sum())
        mean += loss.item()
        if step % args.log_every == 0 or step == args.steps:
            seconds = time.monotonic() - start
            count = args.log_every if step % args.log_every == 0 else step % args.log_every
            print(f"step {step}/{args.steps}  loss {mean / count:.3f}  {tokens} tokens  {seconds:.0f} s", flush=True)
            mean = 0.0


@torch.inference_mode()
def held_out_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, size: int) -> float:
    """Mean cross-entropy per token on documents that were not trained on."""
    model.eval()
    losses = [loss_of(model, batch).item() for batch in batches(tokenizer, HELD_OUT_SEED, 2000, size)]
    return sum(losses) / len(losses)


def main() -> None:
    """Train, check and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default_out = Path(__file__).resolve().parents[1] / "runner" / "demo" / "tiny_llama"
    parser.add_argument("--out", type=Path, default=default_out, help="folder to write (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="documents a step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=4e-3, help="peak learning rate (default: %(default)s)")
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
