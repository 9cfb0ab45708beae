"""Record references for tokenizers with scores: `pip install sentencepiece==0.2.3`, then `python make_scores.py STORIES.PY FOLDER`.

STORIES.PY holds llama2.c's algorithm as `tok` and `enc` (merging by searching all pairs again, quadratic); FOLDER holds stories15M's tokenizer.bin
and tok512.bin. Writes score-reference.json beside this file: ids of texts by those two vocabularies (of
characters whose bytes stories15M's older file spells as Latin letters, `enc` merges those letters with their neighbours, as llama2.c does and Llama's tokenizer does not:
such characters, U+0085 and Ⅷ among them, are left out), and a small SentencePiece model
(its pieces, scores and types, as a GGUF file would hold them) with the ids and texts that SentencePiece itself gives.
"""
import io, json, os, re, struct, sys
import sentencepiece
from texts import CORPUS, TEXTS

source = open(sys.argv[1]).read()
functions = {}
exec('import struct\n' + ''.join(re.findall(r'^def (?:tok|enc)\(.*?(?=^def )', source, re.M | re.S)), functions)
STORIES = ['', ' ', 'Once upon a time, there was a', 'Lily and Ben', '  two  spaces ', 'line\nbreak\n\nparagraph', 'a\u0000b', '👍🏽 emoji 👨‍👩‍👧', 'naïve café', '日本語', '<s> is not special </s>', '<0x41>', '<unk>', 'x' * 50,
           '"Hello!" she said. "1, 2, 3... 45678?"', CORPUS[:400], 'the ' * 60, 'aaaabaaaab' * 12]
out = {}
for name, path, size in (('stories15M', 'tokenizer.bin', 32000), ('stories260K', 'tok512.bin', 512)):
    pieces, scores = functions['tok'](os.path.join(sys.argv[2], path), size)
    out[name] = [dict(text=t, ids=functions['enc'](t, pieces, scores)) for t in STORIES]

model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS.split('\n') * 3), model_writer=model, model_type='bpe', vocab_size=460, byte_fallback=True, character_coverage=0.99,
    normalization_rule_name='identity', remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True, user_defined_symbols=['<|user|>'], minloglevel=2)
sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
kind = lambda i: 2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 4 if sp.id_to_piece(i) == '<|user|>' else 1
n = sp.get_piece_size()
texts = [t for t in TEXTS if '<' not in t]
out['sentencepiece'] = dict(version=sentencepiece.__version__, tokens=[sp.id_to_piece(i) for i in range(n)], scores=[sp.get_score(i) for i in range(n)], types=[kind(i) for i in range(n)],
    bos=sp.bos_id(), eos=sp.eos_id(), unk=sp.unk_id(), cases=[dict(text=t, ids=sp.encode(t), decoded=sp.decode(sp.encode(t))) for t in texts])
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'score-reference.json'), 'w') as f:
    json.dump(out, f, ensure_ascii=False, separators=(',', ':'))
