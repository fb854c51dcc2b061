"""The templates of conversations in Jinja, as `transformers`, llama.cpp and JavaScript read them in `chat_template`.

They write what finetune/instruct/templates.py writes, as text. A text cannot say which of its `<user>` are markers, so
what somebody typed is kept apart from them by two noncharacters of Unicode, which `tokenizer_json` has removed again
once the specials were found: after each `<`, so that no text spells a special, and after texts that are split into
words each on its own.
"""

from data.errors import UserError

GUARD = "\ufdd0"  # after each `<` of a message; removed before the text is split into words
# After a message that is split into words by itself. Also, a message that is one special's name and nothing else would
# be that special to JavaScript's tokenizers.
BORDER = "\ufdd1"
_TURNS = {  # what stands around the user's message
    "chatml": ("<user>", "<assistant>"),
    "alpaca": ("<user>### Instruction:\n", "\n\n### Response:\n<assistant>"),
    "plain": ("", ""),
}


def chat_template(name: str, starts: str, ends: str, guarded: bool = True) -> str:
    """The template `name` of a run. `starts` and `ends`: the special before the first turn and the one after each
    answer. `guarded`: for a tokenizer that takes out `GUARD` and `BORDER`."""
    if name not in _TURNS:
        raise UserError(f"a template '{name}' has no counterpart elsewhere; there are: {', '.join(_TURNS)}")
    before, after = map(_literal, _TURNS[name])
    content = f"message['content'] | replace('<', '<{GUARD}')" if guarded else "message['content']"
    border = _literal(BORDER) if guarded else ""
    after_system = _literal("\n\n") if name == "alpaca" else border
    after = after if name == "alpaca" else border + after
    return (
        f"{_literal(starts)}{{% for message in messages %}}"
        "{% if message['content'] is not string %}"
        "{{ raise_exception('the content of each message has to be a text') }}"
        f"{{% elif message['role'] == 'user' %}}{before}{{{{ {content} }}}}{after}"
        f"{{% elif message['role'] == 'assistant' %}}{{{{ {content} }}}}{border}{_literal(ends)}"
        f"{{% elif message['role'] == 'system' and loop.first %}}{{{{ {content} }}}}{after_system}"
        "{% else %}{{ raise_exception('the model knows a system message at the beginning, user and assistant') }}"
        "{% endif %}{% endfor %}"
    )


def _literal(text: str) -> str:
    """Jinja that writes `text`."""
    escaped = text.replace("\n", "\\n")
    return f"{{{{ '{escaped}' }}}}" if text else ""
