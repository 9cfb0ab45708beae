"""Writes recorded.json: what PyTorch does from the same numbers as the tests of src/nn. Usage: python record.py > recorded.json (torch 2.13)."""
import json
import torch
import torch.nn.functional as F

torch.set_num_threads(1)


def stream(seed):
    state = seed
    while True:
        state = (state * 1664525 + 1013904223) % 2 ** 32
        yield state / 2 ** 32 - 0.5


def draw(numbers, shape, scale=1.0):
    n = 1
    for d in shape:
        n *= d
    return (torch.tensor([next(numbers) for _ in range(n)], dtype=torch.float64) * scale).float().reshape(shape)


def quadratic(make):
    numbers = stream(3)
    shapes = [(6, 4), (5,)]
    ps = [draw(numbers, s, 2.0).requires_grad_() for s in shapes]
    cs = [draw(numbers, s) for s in shapes]
    ws = [draw(numbers, s) + 1 for s in shapes]
    o = make(ps)
    for _ in range(5):
        o.zero_grad()
        sum((w * (p - c) ** 2).sum() for p, c, w in zip(ps, cs, ws)).mul(0.5).backward()
        o.step()
    return [[round(float(v), 8) for v in p.detach().flatten()] for p in ps]


def parameters(shapes, seed):
    numbers = stream(seed)
    return {name: draw(numbers, shape, scale) + one for name, shape, scale, one in shapes}


V, W, H, L, B, T, HID = 17, 16, 2, 2, 4, 8, 32


def transformer():
    shapes = [('embed.weight', (V, W), 0.5, 0), ('position.weight', (T, W), 0.5, 0)]
    for i in range(L):
        for n in ('norm1', 'norm2'):
            shapes += [(f'block{i}.{n}.weight', (W,), 0.2, 1), (f'block{i}.{n}.bias', (W,), 0.2, 0)]
        for n in 'qkvo':
            shapes += [(f'block{i}.attention.{n}.weight', (W, W), 0.5, 0), (f'block{i}.attention.{n}.bias', (W,), 0.2, 0)]
        shapes += [(f'block{i}.mlp.up.weight', (W, HID), 0.5, 0), (f'block{i}.mlp.up.bias', (HID,), 0.2, 0), (f'block{i}.mlp.down.weight', (HID, W), 0.5, 0), (f'block{i}.mlp.down.bias', (W,), 0.2, 0)]
    shapes += [('norm.weight', (W,), 0.2, 1), ('norm.bias', (W,), 0.2, 0), ('head.weight', (W, V), 0.5, 0), ('head.bias', (V,), 0.2, 0)]
    p = {k: v.requires_grad_() for k, v in parameters(shapes, 11).items()}
    lin = lambda x, n: x @ p[f'{n}.weight'] + p[f'{n}.bias']
    norm = lambda x, n: F.layer_norm(x, (W,), p[f'{n}.weight'], p[f'{n}.bias'], 1e-5)
    # Weight decay on matrices only, as ours by default.
    o = torch.optim.AdamW([{'params': [v for v in p.values() if v.dim() > 1], 'weight_decay': 0.1}, {'params': [v for v in p.values() if v.dim() < 2], 'weight_decay': 0.0}], lr=1e-2)
    tokens = stream(5)
    losses = []
    for _ in range(20):
        ids = torch.tensor([int((next(tokens) + 0.5) * V) for _ in range(B * (T + 1))]).reshape(B, T + 1)
        x = p['embed.weight'][ids[:, :-1]] + p['position.weight']
        for i in range(L):
            h = norm(x, f'block{i}.norm1')
            q, k, v = (lin(h, f'block{i}.attention.{n}').reshape(B, T, H, W // H).transpose(1, 2) for n in 'qkv')
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, W)
            x = x + lin(z, f'block{i}.attention.o')
            x = x + lin(F.gelu(lin(norm(x, f'block{i}.norm2'), f'block{i}.mlp.up')), f'block{i}.mlp.down')
        loss = F.cross_entropy(lin(norm(x, 'norm'), 'head').flatten(0, 1), ids[:, 1:].flatten())
        o.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(p.values()), 1.0)
        o.step()
        losses.append(float(loss.detach()))
    return losses


def convolution():
    shapes = [('conv1.weight', (4, 1, 3, 3), 0.8, 0), ('conv1.bias', (4,), 0.2, 0), ('conv2.weight', (8, 4, 3, 3), 0.5, 0), ('conv2.bias', (8,), 0.2, 0), ('head.weight', (8, 3), 0.8, 0), ('head.bias', (3,), 0.2, 0)]
    p = {k: v.requires_grad_() for k, v in parameters(shapes, 21).items()}
    o = torch.optim.SGD(p.values(), lr=0.1, momentum=0.9)
    numbers = stream(7)
    losses = []
    for _ in range(20):
        x = draw(numbers, (6, 1, 8, 8), 2.0)
        y = torch.tensor([int((next(numbers) + 0.5) * 3) for _ in range(6)])
        h = F.max_pool2d(F.relu(F.conv2d(x, p['conv1.weight'], p['conv1.bias'], padding=1)), 2)
        h = F.relu(F.conv2d(h, p['conv2.weight'], p['conv2.bias'], stride=2, padding=1)).mean((2, 3))
        loss = F.cross_entropy(h @ p['head.weight'] + p['head.bias'], y)
        o.zero_grad()
        loss.backward()
        o.step()
        losses.append(float(loss.detach()))
    return losses


def losses():
    numbers = stream(13)
    a, b = draw(numbers, (4, 6), 4.0), draw(numbers, (4, 6), 4.0)
    y = torch.tensor([2, 0, 5, 1])
    t = torch.sigmoid(b)
    out = {
        'crossEntropy': lambda x: F.cross_entropy(x, y), 'ignored': lambda x: F.cross_entropy(x, y, ignore_index=0), 'mse': lambda x: F.mse_loss(x, b), 'huber': lambda x: F.huber_loss(x, b, delta=0.7),
        'bce': lambda x: F.binary_cross_entropy_with_logits(x, t), 'kl': lambda x: F.kl_div(F.log_softmax(x, -1), F.log_softmax(b, -1), log_target=True, reduction='batchmean'),
        'cosine': lambda x: (1 - F.cosine_similarity(x, b)).mean(), 'triplet': lambda x: F.relu((x - b).pow(2).sum(1) - (x - b.flip(0)).pow(2).sum(1) + 1).mean(),
        'contrastive': lambda x: (F.cross_entropy(F.normalize(x) @ F.normalize(b).T / 0.5, torch.arange(4)) + F.cross_entropy(F.normalize(b) @ F.normalize(x).T / 0.5, torch.arange(4))) / 2,
        'l1': lambda x: x.abs().sum(-1).mean(),
    }
    found = {}
    for name, f in out.items():
        x = a.clone().requires_grad_()
        value = f(x)
        value.backward()
        found[name] = {'value': float(value.detach()), 'norm': float(x.grad.norm())}
    return found


print(json.dumps({
    'optimisers': {
        'sgd': quadratic(lambda p: torch.optim.SGD(p, lr=0.1)),
        'sgdMomentum': quadratic(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05)),
        'sgdNesterov': quadratic(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True)),
        'adam': quadratic(lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.02)),
        'adamW': quadratic(lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1, betas=(0.8, 0.95))),
        'adafactor': quadratic(lambda p: torch.optim.Adafactor(p, lr=0.05, weight_decay=0.1)),
    },
    'transformer': transformer(), 'convolution': convolution(), 'losses': losses(),
}, indent=1))
