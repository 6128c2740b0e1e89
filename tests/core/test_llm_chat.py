"""Chat templates: what they make, and that they make nothing else."""

import datetime
import time

import pytest

from cyxcore.errors import FormatError, SpecError
from cyxcore.llm.chat import ChatTemplate

MESSAGES = [{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": "Hello"}]
CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message['content'] | trim ~ '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def test_messages_become_a_prompt() -> None:
    expected = "<|im_start|>user\nHi <b><|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    assert ChatTemplate(CHATML).render(MESSAGES, add_generation_prompt=False) == expected
    assert ChatTemplate(CHATML).render(MESSAGES) == expected + "<|im_start|>assistant\n"


def test_tools_are_plain_json() -> None:
    assert '[{"name": "f<x>"}]' in ChatTemplate(CHATML).render(MESSAGES, tools=[{"name": "f<x>"}])


def test_namespaces_loops_and_macros_work() -> None:
    source = """{%- macro say(x) %}({{ x }}){% endmacro -%}
    {%- set ns = namespace(n=0) %}
    {%- for m in messages if m.role == 'user' %}{% set ns.n = ns.n + loop.index %}{{ say(m.content.strip()) }}
    {%- endfor %}
    {%- for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}={{ ns.n }}"""
    assert ChatTemplate(source).render(MESSAGES) == "(Hi <b>)02=1"


def test_the_date_is_said_only_where_it_is_given() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') if strftime_now is defined else 'no date' }}")
    assert template.render([]) == "no date"
    assert template.render([], now=datetime.datetime(2026, 11, 26)) == "26 Nov 2026"


def test_a_template_refuses_messages_in_its_own_words() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(SpecError, match="chat template: roles must alternate"):
        template.render(MESSAGES)


def test_a_conversation_that_nests_too_deep_is_refused() -> None:
    deep: dict[str, object] = {}
    for _ in range(400):
        deep = {"a": deep}
    with pytest.raises(SpecError, match="at most 64 deep"):
        ChatTemplate(CHATML).render(MESSAGES, tools=[deep])


NESTING = """{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}
{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}"""
BEHIND = """{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set two = namespace() %}
{% set two.a = ns.x %}{% set two.b = ns.x %}{% set ns.x = two %}{% endfor %}"""
HOSTILE = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__.os }}",
    "builtins": "{{ cycler.__init__.__globals__.os }}",
    "format": "{{ '{0.__class__}'.format(messages) }}",
    "wide format": "{{ '{:9999999999}'.format(1) }}",
    "format_map": "{{ '{x:9999999999}'.format_map({'x': 1}) }}",
    "percent": "{{ '%99999999999d' % 1 }}",
    "attr": "{{ messages | attr('append') }}",
    "append": "{{ messages.append(1) }}",
    "pop": "{{ messages.pop() }}",
    "long loop": "{% for i in range(60000) %}{% for j in range(60000) %}{% endfor %}{% endfor %}",
    "long range": "{% for i in range(10**18) %}{% endfor %}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "product": "{{ 'x' * 10000000000 }}",
    "list product": "{{ ([1] * 10000000000) | length }}",
    "numbers": "{% set ns = namespace(x=2) %}{% for i in range(100) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "doubling": "{% set ns = namespace(x='xxxx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "adding": "{% set ns = namespace(x='xxxx') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "nesting": f"{NESTING}{{{{ ns.x }}}}",
    "nesting as JSON": f"{NESTING}{{{{ ns.x | tojson }}}}",
    "nesting as text": f"{NESTING}{{{{ ns.x ~ '' }}}}",
    "nesting compared": f"{NESTING}{{{{ ns.x == ns.y }}}}",
    "nesting objects": NESTING.replace("[ns.x, ns.x]", "{1: ns.x, 2: ns.x}") + "{{ ns.x }}",
    "nesting tuples": NESTING.replace("[ns.x, ns.x]", "(ns.x, ns.x)") + "{{ ns.x }}",
    "nesting calls": NESTING.replace("[ns.x, ns.x]", "dict(a=ns.x, b=ns.x)") + "{{ ns.x }}",
    "nesting namespaces": NESTING.replace("[ns.x, ns.x]", "namespace(a=ns.x, b=ns.x)") + "{{ ns.x }}",
    "nesting behind": f"{BEHIND}{{{{ ns.x }}}}",
    "nesting raised": f"{BEHIND}{{{{ raise_exception(ns.x) }}}}",
    "nesting joined": f"{BEHIND}{{{{ [ns.x] | join }}}}",
    "nesting replaced": f"{BEHIND}{{{{ 'x' | replace('x', ns.x) }}}}",
    "nesting upper": f"{BEHIND}{{{{ ns.x | upper }}}}",
    "nesting formatted": f"{BEHIND}{{{{ '{{}}'.format(ns.x) }}}}",
    "blocks": "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}"
    "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "replacing": "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(9) %}"
    "{% set ns.x = ns.x.replace('x', ns.x) %}{% endfor %}",
    "joining": "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}"
    "{% set ns.x = [ns.x, ns.x, ns.x] | join(ns.x) %}{% endfor %}",
    "centre": "{{ 'x'.center(10000000000) }}",
    "centre filter": "{{ 'x' | center(10000000000) }}",
    "indent": "{{ messages | tojson(indent=1000000000) }}",
    "recursion": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import '/etc/passwd' as x %}",
    "recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "syntax": "{% for %}",
    "filter": "{{ 1 | no_such_filter }}",
    "missing": "{{ messages[7].content.x }}",
    "division": "{{ 1 // 0 }}",
    "date": "{{ strftime_now('%9999999d') }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_refused(name: str) -> None:
    started = time.process_time()
    with pytest.raises((FormatError, SpecError), match="^chat template: "):
        ChatTemplate(HOSTILE[name]).render(MESSAGES, now=datetime.datetime(2026, 1, 1))
    assert time.process_time() - started < 20  # of a processor, and far from what the attack asks for


def test_a_template_that_is_too_long_is_refused() -> None:
    with pytest.raises(FormatError, match="at most 262144 characters, got 300000"):
        ChatTemplate("x" * 300000)


def test_a_template_has_so_much_time_of_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate(CHATML)
    monkeypatch.setattr("cyxcore.llm.chat.MAX_S", -1.0)
    with pytest.raises(SpecError, match="it takes more than -1 s"):
        template.render(MESSAGES)
