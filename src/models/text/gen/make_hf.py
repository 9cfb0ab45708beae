"""Record what the Rust `tokenizers` library does, for tests: `pip install tokenizers==0.23.3`, then `python make_hf.py`.

Writes hf-reference.json beside this file: for each of several small tokenizers its tokenizer.json and, for each text, ids, offsets in
UTF-16 code units and the decoded text. The vocabularies are trained on the texts below, so nothing here belongs to anyone else.
"""
import json, os
from texts import CORPUS, TEXTS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers, __version__

SPECIAL = ['<unk>', '<s>', '</s>']

def template(bos, eos, t):
    sp = [(x, t.token_to_id(x)) for x in (bos, eos) if x]
    return processors.TemplateProcessing(single=' '.join(x for x in (bos, '$A', eos) if x), pair=' '.join(x for x in (bos, '$A', eos, '$B', eos) if x), special_tokens=sp)

def bpe(size=420, alphabet=None, **kw):
    return dict(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet or [], show_progress=False, **kw)

def byte_level(pre, bos='<s>', eos=None, **model):
    t = Tokenizer(models.BPE(**model))
    # Trained without splitting, so that the way to split decides what may merge.
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split('\n', 'isolated'), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.train_from_iterator([CORPUS], trainers.BpeTrainer(**bpe(size=440, alphabet=pre_tokenizers.ByteLevel.alphabet())))
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel(); t.post_processor = template(bos, eos, t)
    t.add_tokens([AddedToken('<mask>', lstrip=True, normalized=False)])
    return t

BL = pre_tokenizers.ByteLevel
made = {}
made['gpt2'] = byte_level(BL(add_prefix_space=False, trim_offsets=False))
made['digits'] = byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation(), BL(add_prefix_space=False, trim_offsets=False)]), eos='</s>')
made['contiguous'] = byte_level(pre_tokenizers.Sequence([pre_tokenizers.Punctuation('contiguous'), pre_tokenizers.Digits(), BL(add_prefix_space=False, trim_offsets=False)]))
llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
made['llama3'] = byte_level(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(llama3), 'isolated'), BL(add_prefix_space=False, use_regex=False, trim_offsets=False)]), ignore_merges=True)
made['prefix'] = byte_level(BL(add_prefix_space=True, trim_offsets=False))

def spm(normalizer, pre):
    t = Tokenizer(models.BPE(byte_fallback=True, unk_token='<unk>', fuse_unk=True)); t.normalizer = normalizer
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split('\n', 'isolated'), pre_tokenizers.Metaspace(split=False)]) if normalizer is None else None
    tr = bpe(size=480); tr['special_tokens'] = SPECIAL + ['<0x%02X>' % i for i in range(256)]; tr['limit_alphabet'] = 60
    t.train_from_iterator([CORPUS], trainers.BpeTrainer(**tr))
    if pre: t.pre_tokenizer = pre
    t.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)])
    t.post_processor = template('<s>', None, t)
    j = json.loads(t.to_str()); j['added_tokens'] = [a for a in j['added_tokens'] if not a['content'].startswith('<0x')]
    return Tokenizer.from_str(json.dumps(j))
made['llama'] = spm(normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]), None)
made['metaspace'] = spm(None, pre_tokenizers.Metaspace(prepend_scheme='first'))
made['unsplit'] = spm(None, pre_tokenizers.Metaspace(prepend_scheme='never', split=False))

t = Tokenizer(models.Unigram()); t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(' {2,}'), ' ')]); t.pre_tokenizer = pre_tokenizers.Metaspace()
t.train_from_iterator([CORPUS], trainers.UnigramTrainer(vocab_size=220, special_tokens=['<pad>', '</s>', '<unk>'], unk_token='<unk>', show_progress=False))
t.decoder = decoders.Metaspace(); t.post_processor = template(None, '</s>', t); made['unigram'] = t

def wordpiece(normalizer):
    t = Tokenizer(models.WordPiece(unk_token='[UNK]')); t.normalizer = normalizer; t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.train_from_iterator([CORPUS], trainers.WordPieceTrainer(vocab_size=260, special_tokens=['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'], show_progress=False))
    t.decoder = decoders.WordPiece(); t.post_processor = template('[CLS]', '[SEP]', t)
    return t
made['bert'] = wordpiece(normalizers.BertNormalizer())
made['bert-cased'] = wordpiece(normalizers.BertNormalizer(lowercase=False))

t = Tokenizer(models.BPE(unk_token='<unk>', end_of_word_suffix='</w>')); t.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]); t.pre_tokenizer = pre_tokenizers.Whitespace()
t.train_from_iterator([CORPUS], trainers.BpeTrainer(**bpe(size=320, end_of_word_suffix='</w>'))); t.decoder = decoders.BPEDecoder(); t.post_processor = template('<s>', '</s>', t); made['suffix'] = t

def utf16(text):
    at = [0]
    for c in text: at.append(at[-1] + len(c.encode('utf-16-le')) // 2)
    return at

out = {}
for name, t in made.items():
    cases = []
    for text in TEXTS:
        e = t.encode(text); at = utf16(text)
        cases.append(dict(text=text, ids=e.ids, plain=t.encode(text, add_special_tokens=False).ids, offsets=[[at[a], at[b]] for a, b in e.offsets], decoded=t.decode(e.ids, skip_special_tokens=True)))
    out[name] = dict(tokenizer=json.loads(t.to_str()), cases=cases)
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'hf-reference.json'), 'w') as f:
    json.dump(dict(tokenizers=__version__, made=out), f, ensure_ascii=False, separators=(',', ':'))
