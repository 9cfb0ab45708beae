"""Records small PEFT adapters and what PEFT computes with them, into test/peft/: run by hand, once."""
import json, os, sys, torch, shutil
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from safetensors.torch import save_file
out = sys.argv[1]
cases = {
  "llama": (LlamaForCausalLM, LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, vocab_size=31, max_position_embeddings=32, tie_word_embeddings=False),
     dict(r=3, lora_alpha=5, target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"], rank_pattern={"layers.1.self_attn.q_proj": 2}, alpha_pattern={"down_proj": 7})),
  "gpt2": (GPT2LMHeadModel, GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=31, n_positions=32),
     dict(r=4, lora_alpha=8, target_modules=["c_attn", "attn.c_proj", "mlp.c_fc"], fan_in_fan_out=True, use_rslora=True)),
}
for name, (cls, config, lora) in cases.items():
    torch.manual_seed(7)
    model = cls(config).eval()
    for p in model.parameters():
        with torch.no_grad(): p.add_(torch.randn_like(p) * 0.1)
    folder = os.path.join(out, name); shutil.rmtree(folder, ignore_errors=True); os.makedirs(folder)
    model.save_pretrained(folder)
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **lora)).eval()
    for n, p in wrapped.named_parameters():
        if "lora_" in n:
            with torch.no_grad(): p.copy_(torch.randn_like(p) * 0.4)
    wrapped.save_pretrained(os.path.join(folder, "adapter"))
    readme = os.path.join(folder, "adapter", "README.md")
    if os.path.exists(readme): os.remove(readme)
    ids = torch.randint(0, 31, (2, 9))
    with torch.no_grad():
        logits = wrapped(input_ids=ids).logits
        base = wrapped.merge_and_unload()(input_ids=ids).logits
    assert torch.allclose(logits, base, atol=1e-5)
    save_file({"input_ids": ids, "logits": logits.contiguous()}, os.path.join(folder, "golden.safetensors"))
    for f in ("generation_config.json",):
        p = os.path.join(folder, f)
        if os.path.exists(p): os.remove(p)
