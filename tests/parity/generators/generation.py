"""A tiny llama with a tokenizer and a chat template that has learnt a few sentences, and what transformers generates from it.

fixtures/generation/: the checkpoint's folder `tiny-chat` as save_pretrained writes it, and expected.json: greedy tokens of texts and of
conversations, with stop strings, several ends, a penalty on repetition; probabilities after the warpers. Needs transformers.
"""

import json
import shutil

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.generation import LogitsProcessorList, MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)

GAP = 1e-3
SENTENCES = [
    "Once upon a time there was a little fox who lived in a deep forest.",
    "The fox liked to sing, and all the birds — even the old owl 🦉 — came to listen.",
    "One day it rained: 雨が降った。 The fox went home and slept until noon.",
    "When the sun came back, the birds said: “Sing again, little fox!” And it did.",
]
TALKS = [
    ("Who are you?", "I am a little fox."),
    ("What do you like?", "I like to sing 🎵 in the forest."),
    ("Say it in Japanese.", "雨が降った。"),
]
TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
    {%- if message.role not in ['user', 'assistant'] %}
        {{- raise_exception('there is no role ' ~ message.role ~ ' here') }}
    {%- endif %}
    {{- '<|' + message.role + '|>\\n' + message.content | trim + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- endif %}
"""
SPECIAL = ["<|pad|>", "<|begin|>", "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>"]


def tokenizer_():
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    raw.train_from_iterator(SENTENCES + [text for talk in TALKS for text in talk], trainer)
    raw.post_processor = processors.TemplateProcessing(single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<|begin|>", eos_token="<|endoftext|>", pad_token="<|pad|>", chat_template=TEMPLATE)


def learnt(tokenizer):
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=True, initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    texts = [tokenizer(" ".join(SENTENCES)).input_ids + [2]]
    for question, answer in TALKS:
        talk = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        texts.append(tokenizer(tokenizer.apply_chat_template(talk, tokenize=False), add_special_tokens=False).input_ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(250):
        optimizer.zero_grad()
        loss = sum(model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss for ids in texts)
        loss.backward()
        optimizer.step()
    model = model.to(torch.bfloat16).to(torch.float32).eval()
    print("loss", float(loss) / len(texts))
    return model


def run(model, tokenizer, ids, **options):
    """Greedy tokens; every step's two best must be apart."""
    out = model.generate(torch.tensor([ids]), do_sample=False, output_scores=True, return_dict_in_generate=True, tokenizer=tokenizer, **options)
    for scores in out.scores:
        best = scores[0].topk(2).values
        assert best[0] - best[1] > GAP, options
    return out.sequences[0, len(ids) :].tolist()


def probabilities(generator):
    logits = torch.randn(1, 40, generator=generator) * 3
    cases = []
    for options in [dict(temperature=0.7), dict(top_k=5), dict(top_p=0.8), dict(min_p=0.1), dict(temperature=1.5, top_k=20, top_p=0.9, min_p=0.05), dict(top_k=3, top_p=0.5)]:
        warpers = LogitsProcessorList()
        if "temperature" in options:
            warpers.append(TemperatureLogitsWarper(options["temperature"]))
        if "top_k" in options:
            warpers.append(TopKLogitsWarper(options["top_k"]))
        if "top_p" in options:
            warpers.append(TopPLogitsWarper(options["top_p"]))
        if "min_p" in options:
            warpers.append(MinPLogitsWarper(options["min_p"]))
        cases.append({"options": options, "probabilities": warpers(None, logits.clone()).softmax(-1)[0].tolist()})
    return {"logits": logits[0].tolist(), "cases": cases}


def write(folder):
    room = folder / "generation"
    shutil.rmtree(room, ignore_errors=True)
    tokenizer = tokenizer_()
    model = learnt(tokenizer)
    model.generation_config.eos_token_id = [2, tokenizer.convert_tokens_to_ids("<|end|>")]
    model.generation_config.do_sample = True
    model.generation_config.temperature = 0.6
    model.generation_config.top_p = 0.9
    model.generation_config.top_k = 20
    checkpoint = room / "tiny-chat"
    model.to(torch.bfloat16).save_pretrained(checkpoint)
    model.to(torch.float32)
    tokenizer.save_pretrained(checkpoint)
    for name in ["temperature", "top_p", "top_k"]:
        setattr(model.generation_config, name, None)
    model.generation_config.do_sample = False

    texts = []
    for prompt in ["Once upon", "The fox", "", "One day it rained:"]:
        ids = tokenizer(prompt).input_ids
        fresh = run(model, tokenizer, ids, max_new_tokens=64)
        texts.append({"prompt": prompt, "ids": ids, "fresh": fresh, "text": tokenizer.decode(fresh, skip_special_tokens=True)})
    assert len(texts[0]["fresh"]) == 64
    stops = []
    for prompt, stop in [("Once upon", ["ttle fox w"]), ("The fox", ["owl", "birds — e"]), ("One day it rained:", ["。 T"]), ("One day it rained:", ["がふ", "降っ"]), ("Once upon", ["never there"])]:
        ids = tokenizer(prompt).input_ids
        fresh = run(model, tokenizer, ids, max_new_tokens=40, stop_strings=stop)
        whole = tokenizer.decode(fresh, skip_special_tokens=True)
        ends = [whole.index(s) for s in stop if s in whole]
        stops.append({"prompt": prompt, "stop": stop, "fresh": fresh, "text": whole[: min(ends)] if ends else whole})
    penalties = []
    for prompt, penalty in [("Once upon", 1.3), ("The fox", 1.7), ("One day", 0.8)]:
        ids = tokenizer(prompt).input_ids
        penalties.append({"prompt": prompt, "penalty": penalty, "fresh": run(model, tokenizer, ids, max_new_tokens=64, repetition_penalty=penalty)})
    talks = []
    for talk in [[TALKS[0][0]], [TALKS[1][0]], [TALKS[0][0], TALKS[0][1], TALKS[2][0]]]:
        messages = [{"role": ["user", "assistant"][i % 2], "content": text} for i, text in enumerate(talk)]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        fresh = run(model, tokenizer, ids, max_new_tokens=64)
        talks.append({"messages": messages, "ids": ids, "fresh": fresh, "text": tokenizer.decode(fresh, skip_special_tokens=True)})
    expected = {"texts": texts, "stops": stops, "penalties": penalties, "talks": talks, "sampling": probabilities(torch.Generator().manual_seed(4))}
    (room / "expected.json").write_text(json.dumps(expected, ensure_ascii=True) + "\n")
