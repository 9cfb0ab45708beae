"""Record what PIL and transformers' image processors make of a small picture. usage: make.py (needs pillow, numpy, transformers)"""
import base64, io, json, os
import numpy as np
from PIL import Image

b64 = lambda b: base64.b64encode(bytes(b)).decode()
y, x, c = np.meshgrid(np.arange(19), np.arange(23), np.arange(3), indexing='ij')
pixels = ((x * 11 + y * y * 3 + c * 71 + (x * y) % 7 * 30) % 256).astype(np.uint8)
picture = Image.fromarray(pixels)


def file(image, kind, **options):
    out = io.BytesIO(); image.save(out, kind, **options); return b64(out.getvalue())


result = dict(width=23, height=19, pixels=b64(pixels.tobytes()), files={}, resized=[], processed=[])
for name, image in dict(rgb=picture, rgba=picture.convert('RGBA'), grey=picture.convert('L'), palette=picture.quantize(7), bilevel=picture.convert('1')).items():
    result['files'][f'{name}.png'] = dict(bytes=file(image, 'PNG'), pixels=b64(np.asarray(image.convert('RGB')).tobytes()))
result['files']['rgb.jpg'] = dict(bytes=file(picture, 'JPEG', quality=95, subsampling=0), pixels=b64(np.asarray(Image.open(io.BytesIO(base64.b64decode(file(picture, 'JPEG', quality=95, subsampling=0))))).tobytes()))
for how in ('nearest', 'lanczos', 'bilinear', 'bicubic', 'box', 'hamming'):
    for size in ((9, 7), (40, 31), (23, 8)):
        result['resized'].append(dict(how=how, width=size[0], height=size[1], pixels=b64(picture.resize(size, getattr(Image.Resampling, how.upper())).tobytes())))
for config in (
    dict(image_processor_type='ViTImageProcessor', size=dict(height=8, width=8), resample=2, image_mean=[.5, .5, .5], image_std=[.5, .5, .5]),
    dict(image_processor_type='CLIPImageProcessor', size=dict(shortest_edge=12), resample=3, do_center_crop=True, crop_size=dict(height=10, width=11), image_mean=[.48, .45, .40], image_std=[.26, .26, .27]),
    dict(image_processor_type='CLIPImageProcessor', size=8, resample=3, do_center_crop=True, crop_size=12, do_normalize=False),
):
    import transformers
    flags = dict(do_resize=True, do_rescale=True, rescale_factor=1 / 255, do_normalize=True, do_convert_rgb=True)
    config = {**flags, **config}
    # The processors that work with PIL; the others resize with torch, to the same rounding but for one grey level.
    name = config['image_processor_type'].replace('ImageProcessor', 'ImageProcessorPil')
    cls = getattr(transformers, name, None) or getattr(transformers, config['image_processor_type'])
    out = cls(**{k: v for k, v in config.items() if k != 'image_processor_type'})(picture, return_tensors='np')['pixel_values']
    result['processed'].append(dict(config=config, processor=cls.__name__, shape=list(out.shape), values=b64(out.astype(np.float32).tobytes())))
json.dump(result, open(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'pil.json'), 'w'), indent=1)
