"""Records what ops should give, by plain NumPy loops that share no code with the engine. Writes recorded.ndjson beside itself."""

import itertools
import json
import pathlib

import numpy as np
from scipy import special


def wave(*shape, seed=0.0):
    n = int(np.prod(shape))
    return (1.5 * np.sin(0.9 * np.arange(n) + seed)).reshape(shape)


def padded(x, before, after, value=0.0):
    return np.pad(x, [(0, 0), (0, 0), *zip(before, after)], constant_values=value)


def conv(x, w, b, strides, dilations, before, after, groups):
    x = padded(x, before, after)
    n, c = x.shape[:2]
    o, cg = w.shape[:2]
    kernel = w.shape[2:]
    out = [(x.shape[i + 2] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(len(kernel))]
    y = np.zeros((n, o, *out))
    for at in np.ndindex(*out):
        for k in np.ndindex(*kernel):
            place = tuple(at[i] * strides[i] + k[i] * dilations[i] for i in range(len(kernel)))
            for j in range(o):
                g = j // (o // groups)
                channels = x[(slice(None), slice(g * cg, (g + 1) * cg), *place)]
                y[(slice(None), j, *at)] += channels @ w[(j, slice(None), *k)]
    return y + b.reshape(1, -1, *([1] * len(kernel)))


def conv_transpose(x, w, b, strides, dilations, before, after, extra, groups):
    n, c = x.shape[:2]
    og = w.shape[1]
    kernel = w.shape[2:]
    full = [(x.shape[i + 2] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 + extra[i] for i in range(len(kernel))]
    y = np.zeros((n, og * groups, *full))
    for at in np.ndindex(*x.shape[2:]):
        for k in np.ndindex(*kernel):
            place = tuple(at[i] * strides[i] + k[i] * dilations[i] for i in range(len(kernel)))
            for j in range(c):
                g = j // (c // groups)
                for o in range(og):
                    y[(slice(None), g * og + o, *place)] += x[(slice(None), j, *at)] * w[(j, o, *k)]
    cut = tuple(slice(before[i], full[i] - after[i]) for i in range(len(kernel)))
    return y[(slice(None), slice(None), *cut)] + b.reshape(1, -1, *([1] * len(kernel)))


def pool(x, kernel, strides, padding, how, count_padding=True):
    fill = -np.inf if how is np.max else 0.0
    inside = padded(np.ones_like(x), padding, padding)
    x = padded(x, padding, padding, fill)
    out = [(x.shape[i + 2] - kernel[i]) // strides[i] + 1 for i in range(len(kernel))]
    y = np.zeros((*x.shape[:2], *out))
    for at in np.ndindex(*out):
        window = tuple(slice(at[i] * strides[i], at[i] * strides[i] + kernel[i]) for i in range(len(kernel)))
        axes = tuple(range(2, x.ndim))
        part = x[(slice(None), slice(None), *window)]
        if how is np.max:
            y[(slice(None), slice(None), *at)] = part.max(axis=axes)
        else:
            count = np.prod(kernel) if count_padding else inside[(slice(None), slice(None), *window)].sum(axis=axes)
            y[(slice(None), slice(None), *at)] = part.sum(axis=axes) / count
    return y


def resize(x, sizes, mode, align):
    for axis, to in enumerate(sizes, start=2):
        size = x.shape[axis]
        rows = []
        for i in range(to):
            if mode == "nearest":
                rows.append(np.take(x, [int(np.floor(i * size / to))], axis))
                continue
            at = i * (size - 1) / (to - 1) if align else (i + 0.5) * size / to - 0.5
            at = min(max(at, 0), size - 1)
            low = int(np.floor(at))
            high = min(low + 1, size - 1)
            rows.append(np.take(x, [low], axis) * (1 - at + low) + np.take(x, [high], axis) * (at - low))
        x = np.concatenate(rows, axis)
    return x


def attention(q, k, v, heads, mask, bias):
    split = lambda x: x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)
    q, k, v = split(q), split(k), split(v)
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1]) + bias
    scores = np.where(mask[:, None, None, :] > 0, scores, -1e30)
    z = special.softmax(scores, axis=-1) @ v
    return z.transpose(0, 2, 1, 3).reshape(z.shape[0], z.shape[2], -1)


def turned(x, positions, heads, half, interleaved):
    b, p, width = x.shape
    x = x.reshape(b, p, heads, -1).copy()
    for i, j, h, t in itertools.product(range(b), range(p), range(heads), range(half)):
        angle = positions[i, j] * 10.0 ** -t
        first, second = (2 * t, 2 * t + 1) if interleaved else (t, t + half)
        u, v = x[i, j, h, first], x[i, j, h, second]
        x[i, j, h, first] = u * np.cos(angle) - v * np.sin(angle)
        x[i, j, h, second] = v * np.cos(angle) + u * np.sin(angle)
    return x.reshape(b, p, width)


def normalized(x, axes, eps):
    centred = x - x.mean(axis=axes, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=axes, keepdims=True) + eps)


image = wave(2, 4, 5, 4)
line = np.array([-3.0, -1.0, -0.2, 0.0, 0.4, 2.5])
channel = lambda p: p.reshape(1, -1, 1, 1)
softplus = np.logaddexp(0, line)
elu = np.where(line > 0, line, np.expm1(line))
tiny = np.array([1e-7, -3e-6, 1e-3, 0.5, -0.5, 3.0])

recorded = {
    "conv": conv(image, wave(6, 2, 2, 3, seed=1), wave(6, seed=2), [2, 1], [1, 2], [1, 2], [0, 1], 2),
    "conv_1d": conv(wave(1, 2, 6), wave(3, 2, 3, seed=1), wave(3, seed=2), [1], [1], [1], [1], 1),
    "conv_3d": conv(wave(1, 1, 3, 3, 4), wave(2, 1, 2, 2, 2, seed=1), wave(2, seed=2), [1, 2, 1], [1, 1, 2], [0, 1, 0], [0, 1, 0], 1),
    "conv_transpose": conv_transpose(image, wave(4, 3, 2, 3, seed=1), wave(6, seed=2), [2, 1], [1, 2], [0, 1], [0, 1], [1, 0], 2),
    "max_pool": pool(image, [3, 2], [2, 2], [1, 1], np.max),
    "average_pool": pool(image, [3, 2], [2, 2], [1, 1], np.mean),
    "average_pool_inside": pool(image, [3, 2], [2, 2], [1, 1], np.mean, False),
    "resize_nearest": resize(wave(1, 2, 3, 4), [5, 3], "nearest", False),
    "resize_linear": resize(wave(1, 2, 3, 4), [5, 6], "linear", False),
    "resize_aligned": resize(wave(1, 2, 3, 4), [5, 6], "linear", True),
    "pixel_shuffle": wave(1, 8, 2, 3).reshape(1, 2, 2, 2, 2, 3).transpose(0, 1, 4, 2, 5, 3).reshape(1, 2, 4, 6),
    "group_norm": normalized(image.reshape(2, 2, -1), (2,), 1e-5).reshape(image.shape) * channel(wave(4, seed=1)) + channel(wave(4, seed=2)),
    "instance_norm": normalized(image, (2, 3), 1e-5) * channel(wave(4, seed=1)) + channel(wave(4, seed=2)),
    "batch_norm": (image - channel(wave(4, seed=3))) / np.sqrt(channel(np.abs(wave(4, seed=4))) + 1e-5) * channel(wave(4, seed=1)) + channel(wave(4, seed=2)),
    "batch_norm_training": normalized(image, (0, 2, 3), 1e-5) * channel(wave(4, seed=1)) + channel(wave(4, seed=2)),
    "cross_attention": attention(wave(2, 3, 8), wave(2, 4, 8, seed=1), wave(2, 4, 6, seed=2), 2, np.array([[1, 1, 0, 1], [0, 1, 1, 1]]), wave(1, 2, 3, 4, seed=3)),
    "rotary": turned(wave(1, 3, 16), np.array([[0, 5, 2]]), 2, 2, False),
    "rotary_interleaved": turned(wave(1, 3, 16), np.array([[0, 5, 2]]), 2, 2, True),
    "einsum": np.einsum("bij,bkj,k->ib", wave(2, 3, 4), wave(2, 5, 4, seed=1), wave(5, seed=2)),
    "einsum_diagonal": np.einsum("ii", wave(3, 3)),
    "einsum_ellipsis": np.einsum("...ij,jk", wave(2, 2, 3, 4), wave(4, 2, seed=1)),
    "cumprod": np.cumprod(wave(2, 6), axis=1),
    "sort": np.sort(wave(2, 6), axis=1),
    "argsort": np.argsort(wave(2, 6), axis=1),
    "roll": np.roll(wave(2, 6), 2, axis=1),
    "tile": np.tile(wave(2, 3), (2, 2)),
    "pad_reflect": np.pad(wave(2, 4), ((1, 0), (2, 3)), mode="reflect"),
    "pad_edge": np.pad(wave(2, 4), ((1, 0), (2, 3)), mode="edge"),
    "pad_wrap": np.pad(wave(2, 4), ((1, 0), (2, 3)), mode="wrap"),
    "logsumexp": special.logsumexp(wave(2, 6) * 50, axis=1),
    "fake_quantize": (np.clip(np.round(wave(2, 6) / 0.25) + 1, -4, 3) - 1) * 0.25,
    "scan": np.stack(list(itertools.accumulate(wave(4, 3), lambda h, x: np.tanh(0.5 * h + x), initial=np.zeros(3)))[1:]),
    "line": {
        "leaky_relu": np.where(line > 0, line, 0.1 * line),
        "elu": elu,
        "selu": 1.0507009873554805 * np.where(line > 0, line, 1.6732632423543772 * np.expm1(line)),
        "softplus": softplus,
        "softsign": line / (1 + np.abs(line)),
        "hard_sigmoid": np.clip(line / 6 + 0.5, 0, 1),
        "hard_swish": line * np.clip(line / 6 + 0.5, 0, 1),
        "mish": line * np.tanh(softplus),
        "silu": line * special.expit(line),
        "gelu": line * special.ndtr(line),
        "clip": np.clip(line, -0.5, 1),
        "erf": special.erf(line),
    },
    "log1p": np.log1p(np.where(tiny > -1, tiny, 0)),
    "expm1": np.expm1(tiny),
}


recorded |= {f"line_{name}": values for name, values in recorded.pop("line").items()}

with pathlib.Path(__file__).with_name("recorded.ndjson").open("w") as file:
    for name, x in recorded.items():
        x = np.asarray(x)
        record = {"name": name, "shape": list(x.shape), "values": [float(f"{v:.9g}") for v in x.ravel()]}
        file.write(json.dumps(record, separators=(",", ":")) + "\n")
