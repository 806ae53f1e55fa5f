//! Chat templates: what transformers renders, and what they may do.

use fasq::checkpoint::Assets;
use fasq::generate::{ChatTemplate, Message};

use crate::fixture::{fixture, fixtures, ids};

#[test]
fn fixture_chats() {
    for fixture in fixtures() {
        let tokenizer = fixture.tokenizer();
        let chat = &fixture.prompts["chat"];
        let messages: Vec<_> = chat["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| Message::new(m["role"].as_str().unwrap(), m["content"].as_str().unwrap()))
            .collect();
        let template = ChatTemplate::new(&fixture.assets, &fixture.config, &tokenizer).unwrap();
        let rendered = template.render(&messages, chat["add_generation_prompt"].as_bool().unwrap()).unwrap();
        assert_eq!(rendered, chat["rendered"], "{}", fixture.name);
        assert_eq!(tokenizer.encode(&rendered, false).unwrap(), ids(&chat["ids"]), "{}", fixture.name);
    }
}

/// A conversation through a template, with the special tokens of a fixture.
fn render(template: &str, messages: &[(&str, &str)]) -> fasq::Result<String> {
    let fixture = fixture("llama32-tiny-tied");
    let assets = Assets { chat_template: Some(template.into()), ..fixture.assets.clone() };
    let messages: Vec<_> = messages.iter().map(|&(role, content)| Message::new(role, content)).collect();
    ChatTemplate::new(&assets, &fixture.config, &fixture.tokenizer())?.render(&messages, true)
}

#[test]
fn templates_in_the_style_of_llama() {
    let template = r#"{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "1 Jan 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set instructions = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set instructions = "" %}
{%- endif %}
{{- "[system]" }}
{%- if tools is not none %}
    {{- "tools: " + (tools | tojson(indent=4)) }}
{%- endif %}
{{- " today=" + (date_string | length | string) + " " }}
{{- instructions }}
{% for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '[' + message['role'] + ']' + message['content'] | trim }}
    {%- elif message.tool_calls|length != 1 %}
        {{- raise_exception("one tool call at a time") }}
    {%- endif %}
{% endfor %}
{%- if add_generation_prompt %}
    {{- '[assistant]' }}
{%- endif %}
"#;
    let rendered =
        render(template, &[("system", " Be brief. "), ("user", "Hi\n"), ("assistant", "Yo"), ("user", "?")]);
    // What jinja2 gives with trim_blocks and lstrip_blocks.
    let expected = "<|begin_of_text|>[system] today=11 Be brief.\n[user]Hi[assistant]Yo[user]?[assistant]";
    assert_eq!(rendered.unwrap(), expected);
}

#[test]
fn templates_in_the_style_of_qwen() {
    let template = r#"{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<' + message.role + '>' + thought.strip('\n') + '|' + content.lstrip('\n') }}
        {%- else %}
            {{- '<' + message.role + '>' + content }}
        {%- endif %}
        {%- if loop.first or (not loop.last and loop.nextitem.role != "user") %}
            {{- '*' }}
        {%- endif %}
    {%- else %}
        {{- '<' + message.role + '>' + content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<assistant>' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think></think>' }}
    {%- endif %}
{%- endif %}"#;
    let thought = "<think>\nhm\n</think>\n\nfour";
    let rendered = render(template, &[("user", "2+2"), ("assistant", thought), ("user", "sure?")]).unwrap();
    assert_eq!(rendered, "<user>2+2<assistant>four<user>sure?<assistant>");
    let rendered = render(template, &[("user", "2+2"), ("assistant", thought)]).unwrap();
    assert_eq!(rendered, "<user>2+2<assistant>hm|four<assistant>");
}

#[test]
fn a_template_has_the_users_variables() {
    let fixture = fixture("llama32-tiny-tied");
    let template =
        "{% if enable_thinking %}<think>{% endif %}{{ effort }}{{ messages | length }}{{ eos_token }}";
    let assets = Assets { chat_template: Some(template.into()), ..fixture.assets.clone() };
    let variables = serde_json::json!({"enable_thinking": true, "effort": "low", "eos_token": "mine"});
    let template = ChatTemplate::new(&assets, &fixture.config, &fixture.tokenizer()).unwrap();
    let template = template.with(variables.as_object().unwrap().clone());
    let rendered = template.render(&[Message::new("user", "a")], true).unwrap();
    assert_eq!(rendered, "<think>low1<|end_of_text|>");
}

#[test]
fn templates_see_what_transformers_gives_them() {
    let one = |template: &str| render(template, &[("user", "<a href=\"x\">&'é")]).unwrap();
    assert_eq!(one("{{ messages[0] | tojson }}"), r#"{"role": "user", "content": "<a href=\"x\">&'é"}"#);
    assert_eq!(one("{{ [1, {'b': none, 'a': 2.5}] | tojson }}"), r#"[1, {"b": null, "a": 2.5}]"#);
    assert_eq!(one("{{ {'a': [1]} | tojson(indent=2) }}"), "{\n  \"a\": [\n    1\n  ]\n}");
    assert_eq!(one("{{ messages[0].content }}"), "<a href=\"x\">&'é", "no HTML escapes");
    assert_eq!(one("{{ eos_token }}{{ pad_token }}"), "<|end_of_text|>");
    assert_eq!(one("{{ tools is none }} {{ enable_thinking is defined }}"), "True False");
    assert_eq!(
        one(
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i > 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
        ),
        "02"
    );
    assert_eq!(one("  {% if true %}\nx\n  {% endif %}\ny\n"), "x\ny");
    assert_eq!(one("{{ strftime_now('%Y') | int > 2023 }}"), "True");
}

#[test]
fn templates_that_fail_say_why() {
    let error = |template: &str| render(template, &[("user", "hi")]).unwrap_err().to_string();
    let raised = error("{{ raise_exception('roles must alternate') }}");
    assert_eq!(raised, "chat template: roles must alternate");
    for broken in [
        "{% if %}",
        "{{ messages[0].content.nope() }}",
        "{{ strftime_now('%!') }}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{{ missing.attribute }}",
    ] {
        let error = error(broken);
        assert!(error.starts_with("chat template: ") && !error.contains('\n'), "{error}");
    }
    let fixture = fixture("llama32-tiny-tied");
    let base = Assets { chat_template: None, ..fixture.assets.clone() };
    let error = ChatTemplate::new(&base, &fixture.config, &fixture.tokenizer()).err().unwrap().to_string();
    assert!(error.contains("base model") && error.contains("-p TEXT"), "{error}");
}

#[test]
fn line_ends_do_not_matter() {
    let template = "{% for m in messages %}\n{{ m.content }}\n{% endfor %}\n.";
    let messages = [("user", "a"), ("assistant", "b")];
    let expected = render(template, &messages).unwrap();
    assert_eq!(render(&template.replace('\n', "\r\n"), &messages).unwrap(), expected);
    assert_eq!(render(&template.replace('\n', "\r"), &messages).unwrap(), expected);
}

#[test]
fn what_a_trainer_marks_is_rendered() {
    let template = "{% for m in messages %}<{% if m.role == 'user' %}{{ m.content }}{% else %}\n\
        {%- generation -%}\n {{ m.content }} {{ '{% x' }} \n{%- endgeneration %}{% endif %}>{% endfor %}";
    let rendered = render(template, &[("user", "a"), ("assistant", "b")]).unwrap();
    assert_eq!(rendered, "<a><b {% x>");
}
