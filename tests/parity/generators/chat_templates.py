"""Small chat templates with what the templates of real models use, and what transformers renders of them.

fixtures/chat-templates.json. The templates are written here; their features are those of Llama 3's (dates, tools, tojson), Qwen 2.5's
(defaults, nested loops), Gemma's (roles renamed, alternation checked), Mistral's (namespaces, slices), Phi-3's (inline
conditions) and SmolLM's. Needs transformers.
"""

import datetime
import json

import transformers.utils.chat_template_utils as utils


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2025, 3, 7, 16, 5, 9)


utils.datetime = Clock

TEMPLATES = {
    "chatml": """{% for message in messages %}
{%- if loop.first and message['role'] != 'system' %}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
""",
    "headers": """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start|>system<|end|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}<|eot|>
{%- for message in messages %}
    {{- '<|start|>' + message['role'] + '<|end|>\\n\\n'+ message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
""",
    "turns": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    "inst": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the optional system message, roles must alternate") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
""",
    "inline": "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    "thinking": """{#- comments, macros, filters and slices #}
{%- macro turn(role, text, last=false) -%}
<{{ role | upper }}>{{ text | replace('\\n', ' ') | title if role == 'system' else text }}{% if last %}!{% endif %}</{{ role }}>
{%- endmacro -%}
{%- set ns = namespace(last_user=messages|length - 1, found=false) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if not ns.found and message.role == "user" %}{% set ns.last_user = index %}{% set ns.found = true %}{% endif %}
{%- endfor %}
{%- for message in messages %}
{%- set content = message.content %}
{%- if '</think>' in content %}
    {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- turn(message.role, content, loop.index0 > ns.last_user) }}
{%- endfor %}
{%- if add_generation_prompt %}<ASSISTANT>{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}
{%- set joined = messages | map(attribute='role') | join('/') %}
[{{ joined }}|{{ messages | length }}|{{ strftime_now('%A, %B %-d %Y %H:%M:%S %j %I %p') }}|{{ {'a': 1, 'b': [true, none, 1.5, "é\\"<"]} | tojson }}|{{ range(1, 6, 2) | list }}]
""",
}

USER = {"role": "user", "content": "  What is 2+2?\nSay <it>. "}
ASSISTANT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nFour é 👍. "}
SYSTEM = {"role": "system", "content": "be brief\nand kind "}
TALKS = {
    "user": [USER],
    "turns": [USER, ASSISTANT, {"role": "user", "content": "Why?"}],
    "system": [SYSTEM, USER],
    "whole": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT],
    "wrong": [ASSISTANT, USER],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a place",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer", "default": 3}}, "required": ["place"]},
        },
    }
]


def rendered(template, talk, prompt, extra):
    try:
        out, _ = utils.render_jinja_template(
            conversations=[talk], chat_template=template, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>", **extra
        )
        return {"text": out[0]}
    except Exception as error:
        return {"error": str(error)}


def write(folder):
    cases = []
    for name, template in TEMPLATES.items():
        for talk, messages in TALKS.items():
            for prompt in [False, True]:
                cases.append({"template": name, "talk": talk, "prompt": prompt, "variables": {}, **rendered(template, messages, prompt, {})})
        cases.append({"template": name, "talk": "turns", "prompt": True, "variables": {"tools": TOOLS}, **rendered(template, TALKS["turns"], True, {"tools": TOOLS})})
        cases.append({"template": name, "talk": "user", "prompt": True, "variables": {"enable_thinking": False}, **rendered(template, TALKS["user"], True, {"enable_thinking": False})})
    path = folder / "chat-templates.json"
    path.write_text(json.dumps({"templates": TEMPLATES, "talks": TALKS, "cases": cases}, ensure_ascii=True, indent=1) + "\n")
