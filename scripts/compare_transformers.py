#!/usr/bin/env python3
"""Compares fasq-eval's logits with transformers' on random checkpoints: sizes, biases, head counts, file layouts.

    python3 scripts/compare_transformers.py target/release/fasq-eval [--device cpu]

Needs torch, transformers and safetensors. Each case is a model with random float32 weights and 97 random tokens. The
logits must agree within 5e-4, whether fasq-eval reads the tokens in one chunk, in chunks of 40, or one by one. Exits
with 1 if a case does not.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

COMMON = dict(vocab_size=301, max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=None, eos_token_id=1)
LLAMA3 = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
DELTA = dict(linear_conv_kernel_dim=4, linear_key_head_dim=16, linear_value_head_dim=24, linear_num_key_heads=2,
             linear_num_value_heads=4)

CASES = {
    "llama, plain": ("llama", dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)),
    "llama, one kv head, head_dim not hidden / heads": ("llama", dict(hidden_size=40, intermediate_size=33, num_hidden_layers=3, num_attention_heads=5, num_key_value_heads=1, head_dim=18)),
    "llama, attention and mlp bias": ("llama", dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, attention_bias=True, mlp_bias=True)),
    "llama 3.1 scaling, tied": ("llama", dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, rope_parameters=LLAMA3, tie_word_embeddings=True)),
    "llama, big eps": ("llama", dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, rms_norm_eps=1e-2)),
    "qwen3, plain": ("qwen3", dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1, head_dim=20)),
    "qwen3, attention bias, tied": ("qwen3", dict(hidden_size=64, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16, attention_bias=True, tie_word_embeddings=True)),
    "qwen3.5, default interval": ("qwen3_5_text", dict(hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32, **DELTA)),
    "qwen3.5, as many value heads as key heads": ("qwen3_5_text", dict(hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=16, layer_types=["full_attention", "linear_attention", "linear_attention"], **{**DELTA, "linear_num_value_heads": 2})),
    "qwen3.5, tied, three taps": ("qwen3_5_text", dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=24, layer_types=["linear_attention", "full_attention"], tie_word_embeddings=True, **{**DELTA, "linear_conv_kernel_dim": 3})),
}


def build(kind, settings, folder, shard):
    config = transformers.AutoConfig.for_model(kind, **{**COMMON, **settings})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim >= 2:
                p.normal_(0, 1.2 / p.shape[-1] ** 0.5)
            else:
                p.add_(torch.randn_like(p) * 0.2)
    model.save_pretrained(folder, max_shard_size="60KB" if shard else "1GB")
    return model


def fasq(binary, folder, ids, chunk, device):
    out = Path(folder) / "out.safetensors"
    command = [binary, "logits", folder, "--ids", ",".join(map(str, ids)), "--out", out, "--chunk", chunk, "--device", device]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return load_file(out)["logits"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    failed = 0
    for i, (name, (kind, settings)) in enumerate(CASES.items()):
        torch.manual_seed(i)
        with tempfile.TemporaryDirectory() as folder:
            model = build(kind, settings, folder, shard=i % 2 == 1)
            ids = torch.randint(0, COMMON["vocab_size"], (1, 97))
            with torch.no_grad():
                expected = model(ids).logits[0]
            for chunk in (512, 40, 1):
                got = fasq(args.binary, folder, ids[0].tolist(), chunk, args.device)
                worst = (got - expected).abs().max().item()
                ok = worst < 5e-4
                failed += not ok
                print(f"{'ok  ' if ok else 'FAIL'} {name}, chunk {chunk}: worst {worst:.1e} (logits up to {expected.abs().max():.1f})", flush=True)
    print(json.dumps({"cases": len(CASES), "failed": failed}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
