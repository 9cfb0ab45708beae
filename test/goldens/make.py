"""Record reference values of tiny random Hugging Face models: test/goldens/NAME for each line of the table below.

usage: python make.py [NAME...]        (needs torch, transformers >= 5, safetensors; CPU, float32)

A folder holds a checkpoint (config.json, model.safetensors) and golden.safetensors:
  input_ids, attention_mask      [3, 12]: row 0 is full, row 1 padded on the right, row 2 on the left
  position_ids                   where the reference counts padding in its learned positions
  logits, resid_pre.0, resid_post.L, attn_out.1, mlp_out.1, attn_probs.1
  router_logits.L, expert_weights.L, expert_indices.L
  steer.vector, steered.logits   resid_post.1 += steer.vector
  ablated.logits                 the output of the MLP module of block 0 set to zero
  greedy                         [1, 16] tokens after row 0
Values are compared where the mask is one.
"""
import json, os, sys
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

VOCAB, WIDTH, LAYERS, HEADS, HIDDEN, CONTEXT = 47, 24, 2, 3, 40, 40
ids = dict(vocab_size=VOCAB, bos_token_id=1, eos_token_id=2, pad_token_id=0)
neo = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=HIDDEN, max_position_embeddings=CONTEXT, **ids)
llama = dict(num_key_value_heads=1, **neo)
gpt = dict(n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT, **ids)
falcon = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, ffn_hidden_size=HIDDEN, **ids)
experts = dict(num_experts=3, num_experts_per_tok=2, moe_intermediate_size=16)
windows = dict(sliding_window=6, layer_types=['sliding_attention', 'full_attention'])
scales = dict(embedding_multiplier=3.0, attention_multiplier=8**-.5, residual_multiplier=.5, logits_scaling=2.0)
rope = lambda kind, **more: dict(rope_parameters=dict(rope_type=kind, rope_theta=1e4, **more))
slow = dict(short_factor=[1, 1.1, 1.2, 1.3], long_factor=[2, 2.1, 2.2, 2.3])

FAMILIES = {
    'arcee': ('arcee', llama),
    'bloom': ('bloom', dict(hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS, **ids)),
    'cohere': ('cohere', dict(llama, logit_scale=.25, use_qk_norm=True)),
    'cohere2': ('cohere2', dict(llama, logit_scale=.25, **windows)),
    'ernie4_5': ('ernie4_5', dict(llama, head_dim=8)),
    'exaone4': ('exaone4', dict(llama, head_dim=8, **windows)),
    'falcon-7b': ('falcon', dict(falcon, multi_query=True, parallel_attn=True, bias=False)),
    'falcon-40b': ('falcon', dict(falcon, num_kv_heads=1, new_decoder_architecture=True, bias=False)),
    'falcon-rw': ('falcon', dict(falcon, alibi=True, multi_query=False, parallel_attn=False, bias=True)),
    'gemma': ('gemma', dict(llama, head_dim=8)),
    'gemma2': ('gemma2', dict(llama, head_dim=8, query_pre_attn_scalar=8, attn_logit_softcapping=5.0, final_logit_softcapping=3.0, **windows)),
    'gemma3-mixed': ('gemma3_text', dict(llama, head_dim=16, query_pre_attn_scalar=12, **windows, rope_parameters=dict(
        full_attention=dict(rope_type='linear', factor=8.0, rope_theta=1e6), sliding_attention=dict(rope_type='default', rope_theta=1e4)))),
    'gemma3-vision': ('gemma3', dict(
        text_config=dict(llama, head_dim=8, query_pre_attn_scalar=8, **windows), mm_tokens_per_image=4, image_token_index=46, boi_token_index=45, eoi_token_index=44,
        vision_config=dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16, patch_size=8))),
    'glm': ('glm', dict(llama, head_dim=8)),
    'glm4': ('glm4', dict(llama, head_dim=8)),
    'gpt_bigcode': ('gpt_bigcode', dict(gpt, n_inner=HIDDEN)),
    'gpt_neo': ('gpt_neo', dict(hidden_size=WIDTH, num_layers=LAYERS, num_heads=HEADS, intermediate_size=HIDDEN, max_position_embeddings=CONTEXT,
                                window_size=6, attention_types=[[['global', 'local'], 1]], **ids)),
    'gpt2': ('gpt2', dict(gpt, n_inner=HIDDEN)),
    'gpt_neox': ('gpt_neox', dict(neo, rotary_pct=.5)),
    'gptj': ('gptj', dict(gpt, rotary_dim=4, n_inner=HIDDEN)),
    'granite': ('granite', dict(llama, **scales)),
    'granitemoe': ('granitemoe', dict(llama, num_local_experts=3, num_experts_per_tok=2, **scales)),
    'helium': ('helium', dict(llama, head_dim=8)),
    'llama3': ('llama', dict(llama, tie_word_embeddings=True, **rope('llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32))),
    'llama-dynamic': ('llama', dict(llama, max_position_embeddings=32, **rope('dynamic', factor=2.0))),
    'llama-linear': ('llama', dict(llama, attention_bias=True, mlp_bias=True, **rope('linear', factor=4.0))),
    'llama-yarn': ('llama', dict(llama, **rope('yarn', factor=4.0, original_max_position_embeddings=10))),
    'minicpm': ('granite', dict(llama, **scales)),
    'ministral': ('ministral', dict(llama, head_dim=16, **windows)),
    'mamba': ('mamba', dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, state_size=5, expand=2, conv_kernel=4, time_step_rank=3, **ids)),
    'mistral': ('mistral', dict(llama, sliding_window=6)),
    'mixtral': ('mixtral', dict(llama, num_local_experts=3, num_experts_per_tok=2)),
    'mpt': ('mpt', dict(d_model=WIDTH, n_heads=HEADS, n_layers=LAYERS, max_seq_len=CONTEXT, vocab_size=VOCAB)),
    'nemotron': ('nemotron', llama),
    'olmo': ('olmo', dict(llama, clip_qkv=.5)),
    'olmo2': ('olmo2', llama),
    'olmo3': ('olmo3', dict(llama, **windows)),
    'olmoe': ('olmoe', dict(llama, num_experts=3, num_experts_per_tok=2, intermediate_size=16)),
    'opt': ('opt', dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, ffn_dim=HIDDEN, max_position_embeddings=CONTEXT, word_embed_proj_dim=WIDTH, **ids)),
    'opt-350m': ('opt', dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, ffn_dim=HIDDEN, max_position_embeddings=CONTEXT,
                             word_embed_proj_dim=16, do_layer_norm_before=False, **ids)),
    'phi': ('phi', dict(neo, partial_rotary_factor=.5, qk_layernorm=True)),
    'phi2': ('phi', dict(neo, partial_rotary_factor=.5)),
    'phi3': ('phi3', dict(llama, sliding_window=6)),
    'phi3-longrope': ('phi3', dict(llama, original_max_position_embeddings=8, **rope('longrope', original_max_position_embeddings=8, **slow))),
    'phi3-short': ('phi3', dict(llama, original_max_position_embeddings=32, **rope('longrope', original_max_position_embeddings=32, **slow))),
    'qwen2': ('qwen2', llama),
    'qwen2-window': ('qwen2', dict(llama, sliding_window=6, use_sliding_window=True, max_window_layers=1)),
    'qwen2_moe': ('qwen2_moe', dict(llama, shared_expert_intermediate_size=16, mlp_only_layers=[1], **experts)),
    'qwen3': ('qwen3', dict(llama, head_dim=16)),
    'qwen3_moe': ('qwen3_moe', dict(llama, head_dim=8, norm_topk_prob=True, **experts)),
    'seed_oss': ('seed_oss', dict(llama, head_dim=8)),
    'smollm3': ('smollm3', dict(llama, no_rope_layers=[1, 0])),
    'stablelm': ('stablelm', dict(llama, use_qkv_bias=True)),
    'stablelm-12b': ('stablelm', dict(llama, qk_layernorm=True, use_parallel_residual=True, partial_rotary_factor=.5)),
    'starcoder2': ('starcoder2', llama),
}
words = dict(neo, type_vocab_size=2)
image = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=HIDDEN, image_size=16, patch_size=8)
t5 = dict(d_model=WIDTH, d_kv=8, d_ff=HIDDEN, num_layers=LAYERS, num_heads=HEADS, vocab_size=VOCAB, pad_token_id=0, eos_token_id=2, decoder_start_token_id=0)
# Also: resid_post.L and attn_probs.L, with the prefixes encoder. and decoder. where there are two stacks, and last_hidden_state.
ENCODERS = {
    'bert': ('bert', words),
    'bart': ('bart', dict(d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_attention_heads=HEADS, decoder_attention_heads=HEADS,
                           encoder_ffn_dim=HIDDEN, decoder_ffn_dim=HIDDEN, max_position_embeddings=CONTEXT, scale_embedding=True, vocab_size=VOCAB, pad_token_id=0, bos_token_id=1,
                           eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2)),
    'clip_text': ('clip_text_model', neo),
    'clip_vision': ('clip_vision_model', image),
    'deit': ('deit', image),
    'dinov2': ('dinov2', dict(image, mlp_ratio=2)),
    'dinov2-registers': ('dinov2_with_registers', dict(image, mlp_ratio=2, num_register_tokens=3)),
    'dinov2-swiglu': ('dinov2', dict(image, mlp_ratio=2, use_swiglu_ffn=True)),
    'distilbert': ('distilbert', dict(dim=WIDTH, n_layers=LAYERS, n_heads=HEADS, hidden_dim=HIDDEN, max_position_embeddings=CONTEXT, vocab_size=VOCAB, pad_token_id=0)),
    'modernbert': ('modernbert', dict(neo, local_attention=6, layer_types=['full_attention', 'sliding_attention'], cls_token_id=1, sep_token_id=2)),
    'roberta': ('roberta', dict(words, pad_token_id=1, bos_token_id=0)),
    'siglip_vision': ('siglip_vision_model', image),
    't5': ('t5', t5),
    't5-gated': ('t5', dict(t5, feed_forward_proj='gated-gelu', tie_word_embeddings=False)),
    'vit': ('vit', image),
}
# Also: vision.resid_post.L, and of CLIP text.resid_post.L, text_embeds, image_embeds, logits_per_image.
PAIRS = {
    'clip': ('clip', dict(text_config=dict(neo), vision_config=dict(image), projection_dim=16)),
    'llava': ('llava', dict(text_config=dict(llama, model_type='llama'), vision_config=dict(image, model_type='clip_vision_model', projection_dim=16), image_token_index=VOCAB - 1, image_seq_length=4)),
    'llava-siglip': ('llava', dict(text_config=dict(llama, model_type='llama'), vision_config=dict(image, model_type='siglip_vision_model'), image_token_index=VOCAB - 1, image_seq_length=4,
                                   vision_feature_layer=-1, vision_feature_select_strategy='full')),
}
# Families whose code is not part of transformers: the same numbers under another config.
RENAMED = {'minicpm': dict(model_type='minicpm', scale_emb=3.0, scale_depth=.5 * LAYERS**.5, dim_model_base=WIDTH // 2)}
# Its eager attention adds ALiBi twice.
SDPA = ['falcon-rw']
BLOCKS = ['model.layers', 'model.language_model.layers', 'transformer.h', 'transformer.blocks', 'gpt_neox.layers', 'model.decoder.layers', 'backbone.layers']
ATTENTION, MLP = ['mixer', 'self_attn', 'attn', 'attention', 'self_attention'], ['mlp', 'block_sparse_moe', 'ffn']


def find(module, names):
    """The first submodule that is there, by dotted path."""
    for name in names:
        m = module
        for part in name.split('.'): m = getattr(m, part, None)
        if m is not None: return m


def first(x): return x[0] if isinstance(x, (tuple, list)) else x


def keep(store, name, part=0):
    def hook(_module, _inputs, output): store[name] = (output if torch.is_tensor(output) else output[part]).detach().float().clone()
    return hook


def replaced(module, change):
    """Runs with the output of a module changed."""
    def hook(_module, _inputs, output): return change(output) if torch.is_tensor(output) else (change(output[0]), *output[1:])
    return module.register_forward_hook(hook)


def start(name, kind, settings, auto, attention):
    """A model with weights that leave nothing near zero or saturated."""
    torch.manual_seed(sum(map(ord, name)))
    model = auto.from_config(AutoConfig.for_model(kind, **settings), attn_implementation=attention).float().eval()
    for n, p in model.named_parameters():
        if p.dim() >= 2: p.normal_(0, 1 / p.shape[-1]**.5)
        elif 'bias' in n: p.normal_(0, .1)
        else: p.add_(.2 * torch.randn_like(p))
    model.tie_weights()
    return model


def save(model, name):
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    model.save_pretrained(folder)
    return folder


def prompts(padding):
    tokens, mask = torch.randint(3, VOCAB, (3, 12)), torch.ones(3, 12, dtype=torch.long)
    mask[1, 8:] = 0; mask[2, :3] = 0; tokens[mask == 0] = padding
    return dict(input_ids=tokens, attention_mask=mask)


def finish(name, folder, out):
    save_file({k: v.contiguous().clone() for k, v in out.items()}, os.path.join(folder, 'golden.safetensors'))
    path = os.path.join(folder, 'config.json')
    config = {**json.load(open(path)), **RENAMED.get(name, {})}
    json.dump({k: v for k, v in config.items() if v is not None or k == 'sliding_window'}, open(path, 'w'), indent=1)
    extra = os.path.join(folder, 'generation_config.json')
    if os.path.exists(extra): os.remove(extra)
    print(f'{name}: {len(out)} tensors, {sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder)) // 1000} kB')


@torch.no_grad()
def make(name):
    kind, settings = FAMILIES[name]
    attention = 'sdpa' if name in SDPA else 'eager'
    model = start(name, kind, settings, AutoModelForCausalLM, attention)
    folder = save(model, name)
    feed, out = prompts(0), {}
    tokens = feed['input_ids']
    blocks = find(model, BLOCKS)
    hooks = [blocks[0].register_forward_pre_hook(lambda _m, a, k: out.__setitem__('resid_pre.0', (a[0] if a else k['hidden_states']).clone()), with_kwargs=True)]
    for layer, block in enumerate(blocks):
        hooks.append(block.register_forward_hook(keep(out, f'resid_post.{layer}')))
        for site, module in (('mixer_out' if kind == 'mamba' else 'attn_out', find(block, ATTENTION)), ('mlp_out', find(block, MLP))):
            if layer == 1 and module is not None: hooks.append(module.register_forward_hook(keep(out, f'{site}.1')))
        router = find(block, ['mlp.gate'])
        if router is not None and not isinstance(router, torch.nn.Linear):
            for part, site in enumerate(('router_logits', 'expert_weights', 'expert_indices')): hooks.append(router.register_forward_hook(keep(out, f'{site}.{layer}', part)))
    result = model(**feed, output_attentions=attention == 'eager')
    for h in hooks: h.remove()
    out.update(feed, logits=result.logits)
    for n in [n for n in out if n.startswith(('router', 'expert'))]: out[n] = out[n].reshape(3, 12, -1)
    if attention == 'eager' and getattr(result, 'attentions', None): out['attn_probs.1'] = result.attentions[1]
    if kind in ('gpt2', 'gpt_neo', 'gpt_bigcode'): out['position_ids'] = torch.arange(12).repeat(3, 1)
    vector = out['steer.vector'] = torch.randn(WIDTH)
    hook = replaced(blocks[1], lambda x: x + vector); out['steered.logits'] = model(**feed).logits; hook.remove()
    mlp = find(blocks[0], MLP)
    if mlp is not None:
        hook = replaced(mlp, torch.zeros_like); out['ablated.logits'] = model(**feed).logits; hook.remove()
    row = tokens[:1]
    for _ in range(16): row = torch.cat([row, model(input_ids=row).logits[:, -1:].argmax(-1)], 1)
    out['greedy'] = row[:, 12:]
    finish(name, folder, out)


@torch.no_grad()
def make_encoder(name):
    kind, settings = ENCODERS[name]
    model = start(name, kind, settings, AutoModelForSeq2SeqLM if kind in ('t5', 'bart') else AutoModel, 'eager')
    folder = save(model, name)
    if 'image_size' in settings: feed = dict(pixel_values=torch.randn(2, 3, 16, 16))
    else: feed = prompts(model.config.pad_token_id)
    out = dict(feed)
    two = kind in ('t5', 'bart')
    # Its learned positions count padding.
    if kind == 'bart': feed['attention_mask'][2] = 1
    if two: feed['decoder_input_ids'] = out['decoder_input_ids'] = torch.cat([torch.zeros(3, 1, dtype=torch.long), feed['input_ids'][:, :5]], 1)
    if kind in ('bert', 'distilbert', 'clip_text_model'): feed['position_ids'] = out['position_ids'] = torch.arange(12).repeat(3, 1)
    core = getattr(model, 'model', model)
    stacks = {f'{s}.': find(getattr(core, s), ['block', 'layers']) for s in ('encoder', 'decoder')} if two else {'': find(model, ['encoder.layer', 'encoder.layers', 'layers', 'transformer.layer'])}
    for prefix, blocks in stacks.items():
        for layer, block in enumerate(blocks): block.register_forward_hook(keep(out, f'{prefix}resid_post.{layer}'))
    result = model(**feed, output_attentions=True)
    for prefix, lists in {'': 'attentions', 'encoder.': 'encoder_attentions', 'decoder.': 'decoder_attentions', 'decoder.cross_': 'cross_attentions'}.items():
        name_of = 'attn_probs'
        for layer, a in enumerate(getattr(result, lists, None) or ()): out[f'{prefix}{name_of}.{layer}'] = a
    out['logits' if two else 'last_hidden_state'] = result.logits if two else result.last_hidden_state
    finish(name, folder, out)


@torch.no_grad()
def make_pair(name):
    kind, settings = PAIRS[name]
    two = kind == 'clip'
    model = start(name, kind, settings, AutoModel if two else AutoModelForImageTextToText, 'eager')
    folder = save(model, name)
    feed = prompts(0)
    feed['pixel_values'] = torch.randn(2, 3, 16, 16)
    if not two:
        # Four patches an image, in the first and the last row.
        feed['input_ids'] = feed['input_ids'].clamp(max=VOCAB - 2)
        feed['input_ids'][0, 2:6] = feed['input_ids'][2, 5:9] = VOCAB - 1
    if two: feed['position_ids'] = torch.arange(12).repeat(3, 1)
    out = dict(feed)
    stacks = {'text.': find(model, ['text_model.encoder.layers', 'text_model.layers']), 'vision.': find(model, ['vision_model.encoder.layers', 'vision_model.layers'])} if two else {
        '': find(model, ['model.language_model.layers']), 'vision.': find(model, ['model.vision_tower.vision_model.encoder.layers', 'model.vision_tower.encoder.layers'])}
    hooks = [block.register_forward_hook(keep(out, f'{prefix}resid_post.{layer}')) for prefix, blocks in stacks.items() for layer, block in enumerate(blocks)]
    result = model(**feed)
    for h in hooks: h.remove()
    if two:
        for n in ('text_embeds', 'image_embeds', 'logits_per_image'): out[n] = result[n]
    else:
        out['logits'] = result.logits
        row = feed['input_ids'][:1]
        for _ in range(16): row = torch.cat([row, model(input_ids=row, pixel_values=feed['pixel_values'][:1]).logits[:, -1:].argmax(-1)], 1)
        out['greedy'] = row[:, 12:]
    finish(name, folder, out)


if __name__ == '__main__':
    for name in sys.argv[1:] or [*FAMILIES, *ENCODERS, *PAIRS]: (make if name in FAMILIES else make_encoder if name in ENCODERS else make_pair)(name)
