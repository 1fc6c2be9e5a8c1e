"""Small tokenizers of every kind, trained here, and what Hugging Face's `tokenizers` makes of awkward texts.

fixtures/tokenizers.json: for each kind a tokenizer.json, ids with and without special tokens, the text decoded again (of the whole, of
every beginning, without special tokens), and encodings of a batch with the file's truncation and padding. Needs tokenizers.
"""

import base64
import json
import struct

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog; it's what foxes do, they're quick and they'll do it again.",
    "We've seen it 12 times in 2024, I'm sure he'd say so. Über allen Gipfeln ist Ruh. naïve café, résumé.",
    "山高月小,水落石出。清风徐来,水波不兴。 日本語のテキスト。",
    "aaaa aaaaaa banana bananas  indented\n    code = [1, 2, 3]\n\tif (x) { return y; }\r\n",
    "In the beginning the heaven and the earth were without form; and darkness was upon the face of the deep.",
    "Ελληνικά Σίσυφος, русский текст, مرحبا بالعالم, नमस्ते दुनिया, שלום עולם.",
] * 4

TEXTS = [
    "", " ", "  ", "a", " a", "the fox", "  the  fox  ", "\n\n\n", "a\n", "\t\tif (x)\n", "it's they're WE'VE I'm he'd they'll IT'ſ",
    "aaaaaaa", "bananananas", "12345 6,789.01", "x²½Ⅷ ٣४", "山高月小,水落石出。", "Übermut naïve", "e\u0301 é ﬁ ﬀ Å ①", "ΣΊΣΥΦΟΣ ΟΔΟΣ",
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽", "\u0000\u0001\u007f\u0080", "a\u0085b", "a\u0085\u0085 b", "\ufeffthe", "a\ufeff \ufeffb", "a\u00a0 b", "a\u3000\u3000b",
    "\u200b \u200d\u2028", "\u180e x\u00ad", "end ", "end  \t ", "<s>the</s>", "the<mask>fox <mask> jumps", "the <mask>fox", "<unused", "café<NEW>CAFÉ new",
    "word wordy word's keyword word", "...!!!???---", "don't—“stop”", "日本語のテキスト 漢字カナ", "مرحبا بالعالم", "नमस्ते", "שָׁלוֹם", "한국어 텍스트",
    "the " + " " * 40 + "deep", "x" * 130, "a_b-c/d\\e|f", "https://example.org/a?b=c&d=%20", "▁the▁fox ▁", "##ing [CLS] the [SEP] [UNK]", "\r\n\r\n  a\r\nb",
    "ǅ ǆ İstanbul ı", "a\u0300\u0301\u0302b", "🤷🏽‍♀️ok", "\U00020000\U0002a700x", "3.14159e-10 0x1F", "ﷺ ㍿ ｱｲｳ ～",
]

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
MASK = AddedToken("<mask>", lstrip=True, special=True)
EXTRA = [AddedToken("word", single_word=True, normalized=True), AddedToken("<NEW>", rstrip=True, normalized=True), AddedToken("new", normalized=True)]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
POSSESSIVE = r"(?>\p{L}++)'?+|\d{2,3}?|\w|[[:punct:]&&]?[^\h\w\s]+|^\s|\s+$|."


def trained(tokenizer, trainer):
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def template(single, pair, tokens):
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=tokens)


def bpe(pre, **options):
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    return trained(
        tokenizer,
        trainers.BpeTrainer(vocab_size=420, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )


def split_bytes(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt2():
    tokenizer = bpe(pre_tokenizers.ByteLevel(add_prefix_space=True))
    tokenizer.add_tokens(EXTRA)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=True)
    return tokenizer


def llama3():
    tokenizer = bpe(split_bytes(LLAMA3), ignore_merges=True)
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template("<s> $A", "<s> $A <s>:1 $B:1", [("<s>", 0)])])
    return tokenizer


def qwen():
    tokenizer = bpe(split_bytes(QWEN))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens([MASK])
    return tokenizer


def spm_bpe(normalizer, pre):
    """As Llama 2, Gemma and Mistral: no splitting, ▁ for spaces, bytes for the unknown."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre or pre_tokenizers.Metaspace()
    trained(tokenizer, trainers.BpeTrainer(vocab_size=560, special_tokens=SPECIAL + bytes_, limit_alphabet=70, show_progress=False))
    tokenizer.pre_tokenizer = pre
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = raw["added_tokens"][: len(SPECIAL)]  # bytes are ordinary tokens
    return Tokenizer.from_str(json.dumps(raw))


def llama2():
    tokenizer = spm_bpe(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = template("<s> $A", "<s> $A <s>:1 $B:1", [("<s>", 1)])
    return tokenizer


def gemma():
    tokenizer = spm_bpe(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = template("<s> $A", "<s> $A <s>:1 $B:1", [("<s>", 1)])
    tokenizer.add_special_tokens([MASK])
    return tokenizer


def mistral():
    tokenizer = spm_bpe(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([MASK])
    return tokenizer


def bert(lowercase):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=lowercase)
    trained(tokenizer, trainers.WordPieceTrainer(vocab_size=330, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], limit_alphabet=120, show_progress=False))
    tokenizer.post_processor = template("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.enable_truncation(max_length=12)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", pad_to_multiple_of=4)
    return tokenizer


def distilbert():
    tokenizer = bert(False)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(max_length=9, strategy="only_first", direction="left")
    tokenizer.enable_padding(length=16, direction="left", pad_id=0, pad_token="[PAD]")
    return tokenizer


def charsmap(entries):
    """A precompiled_charsmap: a double array of the entries' UTF-8, with the same layout as SentencePiece's."""
    texts, offsets, keys = b"", {}, {}
    for source, target in entries.items():
        keys[source.encode()] = len(texts)
        texts += target.encode() + b"\0"
    # a plain trie, then placed: each node gets a block of 256 units of its own
    nodes, children = [b""], {b"": []}
    for key in keys:
        for i in range(len(key)):
            if key[: i + 1] not in children:
                children[key[: i + 1]] = []
                children[key[:i]].append(key[i])
                nodes.append(key[: i + 1])
    block = {node: 256 * (i + 1) for i, node in enumerate(nodes)}
    units = [0] * (256 * (len(nodes) + 1))

    def unit(label, offset, leaf):
        # offsets from 2^21 on would need the scaled form; multiples of 256 may always take it
        return (label | (1 << 8 if leaf else 0)) | (offset << 10)

    position = {b"": 0}
    for node in nodes:
        base = block[node]
        for byte in children[node]:
            position[node + bytes([byte])] = base ^ byte
    for node in nodes:
        at = position[node]
        units[at] = unit(node[-1] if node else 0, at ^ block[node], node in keys)
        if node in keys:
            units[block[node]] = keys[node] | (1 << 31)
    return struct.pack("<I", 4 * len(units)) + struct.pack(f"<{len(units)}I", *units) + texts


def unigram(normalizer, pre, **model):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.Metaspace()
    bytes_ = [f"<0x{i:02X}>" for i in range(256)] if model.get("byte_fallback") else []
    trained(tokenizer, trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False))
    raw = json.loads(tokenizer.to_str())
    raw["model"].update(model)
    raw["model"]["vocab"] += [[byte, -9.0] for byte in bytes_]
    return Tokenizer.from_str(json.dumps(raw))


def t5():
    table = charsmap({"ﬁ": "fi", "①": "1", "\u00a0": " ", "\u3000": " ", "Å": "Å", "é": "é", "\u200b": "", "～": "~", "\n": " ", "\t": " "})
    tokenizer = unigram(normalizers.Sequence([normalizers.Precompiled(table), normalizers.Replace(Regex(" {2,}"), " ")]), pre_tokenizers.Metaspace())
    tokenizer.post_processor = template("$A </s>", "$A </s> $B </s>", [("</s>", 2)])
    tokenizer.add_special_tokens([MASK])
    return tokenizer


def albert():
    norms = [normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Nmt(), normalizers.Strip()]
    return unigram(normalizers.Sequence(norms), pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]), byte_fallback=True)


def clip():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation("contiguous")])
    tokenizer.decoder = decoders.BPEDecoder()
    return trained(tokenizer, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False))


def prefixed():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##", fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation("merged_with_next"), pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits()])
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return trained(tokenizer, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, continuing_subword_prefix="##", limit_alphabet=90, show_progress=False))


def words():
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.CharDelimiterSplit(" "), pre_tokenizers.Punctuation("removed"), pre_tokenizers.FixedLength(4)])
    return trained(tokenizer, trainers.WordLevelTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False))


KINDS = {
    "gpt2-like": gpt2,
    "llama3-like": llama3,
    "qwen2-like": qwen,
    "o200k-like": lambda: bpe(split_bytes(O200K)),
    "bloom-like": lambda: bpe(split_bytes(BLOOM)),
    "possessive": lambda: bpe(split_bytes(POSSESSIVE.replace("&&", ""))),
    "llama2-like": llama2,
    "gemma-like": gemma,
    "mistral-like": mistral,
    "bert-like": lambda: bert(True),
    "distilbert-like": distilbert,
    "t5-like": t5,
    "albert-like": albert,
    "clip-like": clip,
    "prefixed": prefixed,
    "words": words,
}

BATCH = ["the quick brown fox jumps over the lazy dog again and again", "the fox", ("the deep and the face of the earth and the deep", "a fox"), ("the fox", "was upon the face of the deep")]


def encoded(tokenizer, text):
    truncation, padding = tokenizer.truncation, tokenizer.padding
    tokenizer.no_truncation()
    tokenizer.no_padding()
    case = {"text": text, "ids": tokenizer.encode(text).ids, "plain": tokenizer.encode(text, add_special_tokens=False).ids}
    case["decoded"] = tokenizer.decode(case["ids"], skip_special_tokens=False)
    case["skipped"] = tokenizer.decode(case["ids"], skip_special_tokens=True)
    if truncation:
        tokenizer.enable_truncation(**truncation)
    if padding:
        tokenizer.enable_padding(**padding)
    return case


def write(folder):
    out = {}
    for name, make in KINDS.items():
        tokenizer = make()
        kind = {"tokenizer": json.loads(tokenizer.to_str())}
        kind["cases"] = [encoded(tokenizer, text) for text in TEXTS]
        if tokenizer.truncation:
            # a first text that is too short to be cut alone is an error
            texts = BATCH if tokenizer.truncation["strategy"] == "longest_first" else BATCH[:3]
            encodings = tokenizer.encode_batch(texts)
            kind["batch"] = [{"text": t, "ids": e.ids, "types": e.type_ids, "mask": e.attention_mask} for t, e in zip(texts, encodings)]
        tokenizer = Tokenizer.from_str(json.dumps(kind["tokenizer"]))
        assert [encoded(tokenizer, text) for text in TEXTS] == kind["cases"], name
        out[name] = kind
    path = folder / "tokenizers.json"
    path.write_text(json.dumps(out, ensure_ascii=True, separators=(",", ":")) + "\n")
