"""Base models: where they come from, which token pads, what the head is."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from lorsa.runner.compose import compose
from lorsa.runner.errors import UserError
from lorsa.runner.models import load_model, load_tokenizer
from lorsa.runner.signature import model_folder

TEXTS = ["the film was good", "the actor in the old film was not good", "a film"]


def embedded_tokenizer():
    return AutoTokenizer.from_pretrained(model_folder(compose().model.path))


def config_for(folder, *overrides):
    return compose(f"model.path={folder}", *overrides)


def small(config_class, **extra):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return config_class(vocab_size=len(embedded_tokenizer()), **sizes, **extra)


def test_the_embedded_model_loads_with_a_head_for_the_task():
    for task, labels in (("sst2", 2), ("mnli", 3), ("stsb", 1)):
        cfg = compose(f"task={task}")
        base = load_model(cfg, load_tokenizer(cfg))
        assert base.model.config.num_labels == labels
        assert base.head == ["score"]
    assert base.model.config.problem_type == "regression"


def test_a_llama_pools_the_last_token_of_the_text_whatever_the_padding():
    cfg = compose()
    tokenizer = load_tokenizer(cfg)
    base = load_model(cfg, tokenizer)
    with torch.no_grad():
        alone = torch.cat([base.model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])
        for side in ("right", "left"):
            tokenizer.padding_side = side
            batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
            torch.testing.assert_close(base.model(**batch).logits, alone, rtol=1e-4, atol=1e-5)
            batch = tokenizer(TEXTS, return_tensors="pt", padding="max_length", max_length=64)
            torch.testing.assert_close(base.model(**batch).logits, alone, rtol=1e-4, atol=1e-5)


def test_llama_2s_tokenizer_pads_with_what_text_cannot_contain(shared):
    cfg = config_for(shared / "models" / "llama2-tokenizer")
    tokenizer = load_tokenizer(cfg)
    assert tokenizer.pad_token is not None
    strange = tokenizer("naïve 漢字 \U0001f600 </s> <unk>"[:14])["input_ids"]
    assert tokenizer.pad_token_id not in strange
    assert tokenizer.pad_token_id not in tokenizer("a", "b")["input_ids"]


def test_a_real_pretrained_llama_loads_from_a_folder(shared):
    cfg = config_for(shared / "models" / "stories260K")
    tokenizer = load_tokenizer(cfg)
    base = load_model(cfg, tokenizer)
    with torch.no_grad():
        batch = tokenizer(["Once upon a time there was a dog", "A cat"], return_tensors="pt", padding=True)
        alone = base.model(**tokenizer("A cat", return_tensors="pt")).logits[0]
        torch.testing.assert_close(base.model(**batch).logits[1], alone, rtol=1e-4, atol=1e-5)


def test_a_tokenizer_without_a_token_that_could_pad_is_refused(tmp_path):
    tokenizer = embedded_tokenizer()
    # What remains is used in every text, so padding with it would be mistaken for text.
    first = tokenizer.convert_ids_to_tokens(tokenizer("a", "b")["input_ids"])[0]
    tokenizer.pad_token = tokenizer.eos_token = tokenizer.unk_token = first
    tokenizer.save_pretrained(tmp_path)
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no pad token.*model.pad_token="):
        load_tokenizer(config_for(tmp_path))
    assert load_tokenizer(config_for(tmp_path, "model.pad_token=z")).pad_token == "z"
    with pytest.raises(UserError, match="not in the tokenizer's vocabulary"):
        load_tokenizer(config_for(tmp_path, "model.pad_token=nothere"))


def test_the_heads_start_depends_on_the_seed_alone():
    def head(*overrides):
        cfg = compose(*overrides)
        return load_model(cfg, load_tokenizer(cfg)).model.score.weight.detach()

    torch.manual_seed(5)
    first = head("seed=1")
    torch.rand(7)
    assert torch.equal(head("seed=1", "method=lora"), first)
    assert not torch.equal(head("seed=2"), first)


@pytest.mark.parametrize(
    ("config_class", "model_class", "head"),
    [
        (RobertaConfig, RobertaForMaskedLM, ["classifier"]),
        (DebertaV2Config, DebertaV2ForMaskedLM, ["pooler", "classifier"]),
    ],
)
def test_everything_that_the_checkpoint_lacks_belongs_to_the_head(tmp_path, config_class, model_class, head):
    # DeBERTa's pooler is new as well: an adapter on top of one that stays random would not be a fair baseline.
    model_class(small(config_class)).save_pretrained(tmp_path)
    embedded_tokenizer().save_pretrained(tmp_path)
    cfg = config_for(tmp_path, "model.attn_implementation=eager")
    assert load_model(cfg, load_tokenizer(cfg)).head == head


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    LlamaForCausalLM(small(LlamaConfig)).save_pretrained(tmp_path)
    small(RobertaConfig).save_pretrained(tmp_path)
    embedded_tokenizer().save_pretrained(tmp_path)
    cfg = config_for(tmp_path)
    with pytest.raises(UserError, match="lacks weights of the backbone"):
        load_model(cfg, load_tokenizer(cfg))


def test_dtype_and_attention_are_as_asked():
    cfg = compose("model.dtype=bfloat16", "model.attn_implementation=eager")
    base = load_model(cfg, load_tokenizer(cfg))
    assert base.model.dtype == torch.bfloat16
    assert base.model.config._attn_implementation == "eager"


def write_gguf(path, model, tokenizer):
    """Write a Llama as GGUF in the layout of llama.cpp, which interleaves the rows of q and k."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(
        [" ".join(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    )
    writer.add_bos_token_id(tokenizer.bos_token_id or 0)
    writer.add_eos_token_id(tokenizer.eos_token_id or 0)
    writer.add_unk_token_id(tokenizer.unk_token_id or 0)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "model.layers": "blk",
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        array = tensor.numpy().astype(np.float32)
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            rows, columns = array.shape
            array = array.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        for old, new in names.items():
            name = name.replace(old, new)
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_loads_as_the_model_it_was_made_from_and_trains(tmp_path, job):
    tokenizer = embedded_tokenizer()
    model = LlamaForCausalLM(small(LlamaConfig, tie_word_embeddings=False))
    folder = tmp_path / "model"
    folder.mkdir()
    write_gguf(folder / "tiny.gguf", model, tokenizer)
    with pytest.raises(UserError, match=r"GGUF files there: tiny.gguf"):
        load_tokenizer(config_for(folder, "model.gguf_file=other.gguf"))
    cfg = config_for(folder, "model.gguf_file=tiny.gguf")
    base = load_model(cfg, load_tokenizer(cfg))
    loaded = base.model.state_dict()
    for name, tensor in model.model.state_dict().items():
        torch.testing.assert_close(loaded[f"model.{name}"], tensor)
    result = job("debug=smoke", f"model.path={folder}", "model.gguf_file=tiny.gguf", "method.config.k=8")
    assert result["adapter_params"] > 0
