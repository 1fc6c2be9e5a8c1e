"""Tiny checkpoints with random weights, of every architecture that models/ reads, and what transformers computes with them.

A folder of fixtures/pretrained/ is what `save_pretrained` writes (config.json, model.safetensors, shards with an index), and
expected.json: token ids, logits, 64 greedy tokens. Weights are stored in 16 bits where a whole checkpoint would be large, and
computed with in float32. Needs transformers and gguf beside PyTorch.
"""

import json
import shutil

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForImageTextToText, AutoModelForSequenceClassification

from .encoding import record, save

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

VOCABULARY, PROMPT, GREEDY, GAP = 48, 5, 64, 1e-3
SHAPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=96,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)

# name -> (configuration class, its fields, the dtype of the stored weights)
DECODERS = {
    "gpt2": ("gpt2", dict(vocab_size=VOCABULARY, n_positions=96, n_embd=24, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2), torch.bfloat16),
    "llama": ("llama", dict(**SHAPE, tie_word_embeddings=False, rope_theta=10000.0), torch.float32),
    "llama3": ("llama", dict(**SHAPE, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, head_dim=8, rope_theta=100.0, rope_scaling=LLAMA3), torch.bfloat16),
    "mistral": ("mistral", dict(**SHAPE, sliding_window=9, head_dim=8), torch.float16),
    "qwen2": ("qwen2", dict(**SHAPE, use_sliding_window=True, sliding_window=7, max_window_layers=1), torch.bfloat16),
    "qwen3": ("qwen3", dict(**SHAPE, head_dim=8, tie_word_embeddings=True), torch.bfloat16),
    "gemma2": ("gemma2", dict(**SHAPE, head_dim=8, query_pre_attn_scalar=12, sliding_window=6, attn_logit_softcapping=5.0, final_logit_softcapping=12.0), torch.bfloat16),
    "gemma3": ("gemma3_text", dict(**SHAPE, head_dim=8, query_pre_attn_scalar=12, sliding_window=6, rope_theta=50000.0, rope_local_base_freq=500.0, rope_scaling=dict(rope_type="linear", factor=4.0), sliding_window_pattern=2), torch.bfloat16),
    "phi3": ("phi3", dict(**SHAPE, sliding_window=11, partial_rotary_factor=0.7), torch.bfloat16),
    "smollm3": ("smollm3", dict(**SHAPE, no_rope_layers=[1, 0], tie_word_embeddings=True), torch.bfloat16),
    "gpt2-relu": ("gpt2", dict(vocab_size=VOCABULARY, n_positions=96, n_embd=24, n_layer=2, n_head=4, n_inner=40, activation_function="relu", bos_token_id=1, eos_token_id=2), torch.bfloat16),
}

# The kinds of rope scaling on the weights of "llama", as older checkpoints write them, with the sequence lengths to compare.
ROPES = {
    "linear": (dict(rope_type="linear", factor=4.0), [20]),
    "dynamic": (dict(type="dynamic", factor=2.0), [20, 40]),
    "yarn": (dict(rope_type="yarn", factor=4.0, beta_slow=0.2, original_max_position_embeddings=16), [20]),
    "longrope": (
        dict(rope_type="longrope", short_factor=[1.0, 1.1, 1.3], long_factor=[1.5, 2.5, 4.0], original_max_position_embeddings=16),
        [12, 20],
    ),
}


def randomise(model, seed, dtype):
    """Every weight random, norms and biases too, so that none of them can be forgotten; representable in `dtype`."""
    g = torch.Generator().manual_seed(seed)
    # Gemma's embeddings are scaled up and tied: they would drown what the blocks add, and each token would follow itself
    table, spread = (0.1, 1.0) if "gemma" in model.config.model_type else (0.4, 0.2)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            if p.dim() == 1:
                value = p + spread * noise  # around 1 (norms), or 0 (biases, Gemma's norms)
            else:
                scale = table if "embed" in name or "wte" in name else 0.15 if "lm_head" in name else 0.35
                value = noise * scale
            p.copy_(value.to(dtype).float())
    return model.float().eval()


def greedy(model, prompt):
    """The likeliest tokens, without a cache; None where two were too near each other to tell."""
    ids = prompt.clone()
    for _ in range(GREEDY):
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[0, -1]
        top = logits.topk(2).values
        if top[0] - top[1] <= GAP:
            return None
        ids = torch.cat([ids, logits.argmax().reshape(1, 1)], 1)
    return ids[0, prompt.shape[1] :].tolist()


def modern_to_old(folder, **fields):
    """config.json as transformers 4 wrote it: rope_theta and rope_scaling beside the other fields."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for newer in ("rope_parameters", "layer_types", "_sliding_window_pattern"):
        config.pop(newer, None)
    config["torch_dtype"] = config.pop("dtype")
    config.update(fields)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def checkpoint(folder, model, dtype, **options):
    shutil.rmtree(folder, ignore_errors=True)
    model.to(dtype).save_pretrained(folder, **options)
    (folder / "generation_config.json").unlink(missing_ok=True)
    model.float()


def size_of(folder):
    print(f"{folder.name}: {sum(f.stat().st_size for f in folder.iterdir()) / 1024:.0f} KiB")


def decisive(name, make, dtype):
    """A model of `make(seed)` with random weights whose greedy tokens are beyond doubt, and what is expected of it."""
    for seed in range(200):
        torch.manual_seed(seed)
        model = randomise(make(), seed, dtype)
        g = torch.Generator().manual_seed(seed)
        prompt = torch.randint(3, VOCABULARY, (1, PROMPT), generator=g)
        tokens = greedy(model, prompt)
        if tokens is not None and len(set(tokens)) >= 8:
            break
    else:
        raise RuntimeError(f"{name}: no seed of 200 keeps the two likeliest tokens apart")
    ids = torch.randint(0, VOCABULARY, (2, 20), generator=g)
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
    return model, {"seed": seed, "ids": record(ids), "logits": record(logits), "prompt": prompt[0].tolist(), "greedy": tokens}


def decoder(root, name):
    kind, fields, dtype = DECODERS[name]
    # a new configuration each time: a model may change what it is given
    make = lambda: AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields), attn_implementation="eager", dtype=torch.float32)
    model, expected = decisive(name, make, dtype)
    folder = root / name
    checkpoint(folder, model, dtype, **({"max_shard_size": "20KB"} if name == "mistral" else {}))
    if name in ("llama", "llama3", "gemma2", "gemma3"):
        modern_to_old(folder, **{k: v for k, v in fields.items() if k.startswith(("rope_", "sliding_"))})
    if name == "llama":
        expected["ropes"] = [variant(folder, *each) for each in ROPES.items()]
    save(folder / "expected.json", expected)
    size_of(folder)


def seeing(root, name):
    """Gemma 3 as it is stored from 4 billion parameters on: a language model and one that sees, of which text needs the first only."""
    text = dict(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=6, head_dim=4, query_pre_attn_scalar=12, sliding_window=4)
    vision = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, eos_token_id=[2])
    make = lambda: AutoModelForImageTextToText.from_config(config, attn_implementation="eager", dtype=torch.float32)
    model, expected = decisive(name, make, torch.bfloat16)
    folder = root / name
    checkpoint(folder, model, torch.bfloat16)
    path = folder / "config.json"
    written = json.loads(path.read_text())
    # as on the hub, the parts leave out what has its default
    default = transformers.Gemma3TextConfig().to_dict()
    written["text_config"] = {k: v for k, v in written["text_config"].items() if k == "model_type" or (k != "layer_types" and v != default.get(k))}
    path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
    save(folder / "expected.json", expected)
    size_of(folder)


def variant(folder, name, setting):
    """Logits of the checkpoint in `folder` under another rope scaling."""
    scaling, lengths = setting
    fields = {"rope_scaling": scaling, "max_position_embeddings": 32, "rope_theta": 20.0}
    config = AutoConfig.from_pretrained(folder)
    raw = {**json.loads((folder / "config.json").read_text()), **fields}
    config = type(config).from_dict(raw)
    out = []
    for length in lengths:
        model = AutoModelForCausalLM.from_pretrained(folder, config=config, attn_implementation="eager", dtype=torch.float32).eval()
        ids = torch.randint(0, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            out.append({"ids": record(ids), "logits": record(model(ids, use_cache=False).logits)})
    return {"name": name, "config": fields, "runs": out}


# Also as GGUF: interleaved heads, biases, normalised queries, norms with the 1 included, joined projections. What such a file
# does not say is as in the real models.
LOCAL = {"rope_type": "default", "rope_theta": 10000.0}
GGUFS = {
    "llama": {},
    "qwen2": {"use_sliding_window": False, "sliding_window": None, "layer_types": ["full_attention"] * 2},
    "qwen3": {},
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3": {
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention"] * 2,
        "rope_parameters": {"sliding_attention": LOCAL, "full_attention": {**LOCAL, "rope_theta": 50000.0}},
    },
    "phi3": {},
}

TEXT = dict(vocab_size=VOCABULARY, max_position_embeddings=40, num_labels=3)
BERT = dict(**TEXT, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4)

# Classifiers of texts: their logits, and the states and the pooled vector of the encoder in them.
ENCODERS = {
    "bert": ("bert", dict(**BERT, pad_token_id=0)),
    "roberta": ("roberta", dict(**BERT, pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5)),
    "distilbert": ("distilbert", dict(**TEXT, dim=24, hidden_dim=40, n_layers=2, n_heads=4, pad_token_id=0)),
}
IMAGES = {
    "vit": ("vit", dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, image_size=[8, 12], patch_size=4, num_labels=3)),
    "resnet": ("resnet", dict(embedding_size=4, hidden_sizes=[8, 16], depths=[1, 2], layer_type="bottleneck", num_labels=3)),
    "resnet-basic": ("resnet", dict(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3, downsample_in_first_stage=True)),
}


def encoder(root, name):
    kind, fields = ENCODERS[name]
    dtype = torch.bfloat16
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **fields), attn_implementation="eager", dtype=torch.float32)
    randomise(model, 0, dtype)
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (3, 9), generator=g)
    mask = torch.ones_like(ids)
    for row, length in enumerate([9, 6, 2]):
        ids[row, length:] = fields["pad_token_id"]
        mask[row, length:] = 0
    extra = {"token_type_ids": (torch.arange(9) > 3).long().expand(3, 9)} if name == "bert" else {}
    folder = root / name
    checkpoint(folder, model, dtype)
    if name == "roberta":  # as older versions wrote it
        (folder / "model.safetensors").unlink()
        torch.save(model.to(dtype).state_dict(), folder / "pytorch_model.bin")
        model.float()
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, **extra).logits
        bare = getattr(model, model.base_model_prefix)(ids, attention_mask=mask, **extra)
    expected = {"ids": record(ids), "mask": record(mask), "types": record(extra["token_type_ids"]) if extra else None}
    pooled = getattr(bare, "pooler_output", None)
    expected |= {"logits": record(logits), "hidden": record(bare.last_hidden_state), "pooled": None if pooled is None else record(pooled)}
    save(folder / "expected.json", expected)
    size_of(folder)


def image(root, name):
    kind, fields = IMAGES[name]
    model = AutoModelForImageClassification.from_config(AutoConfig.for_model(kind, **fields), dtype=torch.float32)
    randomise(model, 0, torch.bfloat16)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for buffer_name, buffer in model.named_buffers():  # running statistics
            if buffer.is_floating_point():
                value = torch.randn(buffer.shape, generator=g)
                buffer.copy_((0.5 + value.abs() if "var" in buffer_name else 0.3 * value).bfloat16().float())
    pixels = torch.randn((2, 3, 8, 12) if name == "vit" else (2, 3, 18, 14), generator=g)
    with torch.no_grad():
        logits = model(pixels).logits
    folder = root / name
    checkpoint(folder, model, torch.bfloat16)
    save(folder / "expected.json", {"pixels": record(pixels), "logits": record(logits)})
    size_of(folder)


def gguf_file(root, name):
    """The checkpoint `name` as llama.cpp's converter writes it, with the names of the gguf package, and the logits of what is in it."""
    import gguf

    config = AutoConfig.from_pretrained(root / name)
    for field, value in GGUFS[name].items():
        setattr(config, field, value)
    model = AutoModelForCausalLM.from_pretrained(root / name, config=config, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.half().float())
    arch = {"gemma3_text": "gemma3"}.get(config.model_type, config.model_type)
    path = root / "gguf" / f"{name}.gguf"
    path.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(path, arch)
    metadata(writer, config, arch)
    names = gguf.get_tensor_name_map(next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == arch), config.num_hidden_layers)
    for key, x in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if arch == "llama" and (".q_proj." in key or ".k_proj." in key):
            heads = config.num_attention_heads if ".q_proj." in key else config.num_key_value_heads
            x = x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        if arch.startswith("gemma") and key.endswith("norm.weight"):
            x = x + 1
        writer.add_tensor(names.get_name(key, try_suffixes=(".weight", ".bias")), (x.half() if x.dim() > 1 else x).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ids = torch.randint(0, VOCABULARY, (1, 20), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        save(path.with_suffix(".json"), {"ids": record(ids), "logits": record(model(ids, use_cache=False).logits)})
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


def metadata(writer, config, arch):
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_vocab_size(config.vocab_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(int(head * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if arch.startswith("gemma") or arch == "phi3":
        writer.add_sliding_window(config.sliding_window)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def write(folder):
    root = folder / "pretrained"
    for name in DECODERS:
        decoder(root, name)
    seeing(root, "gemma3-seeing")
    for name in GGUFS:
        gguf_file(root, name)
    for name in ENCODERS:
        encoder(root, name)
    for name in IMAGES:
        image(root, name)
