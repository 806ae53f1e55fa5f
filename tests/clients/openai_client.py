"""OpenAI's own Python client against a running fasq-serve: python openai_client.py http://HOST:PORT/v1 [API_KEY]

The model needs a chat template. Fails at the first difference.
"""

import sys

import openai


def main(url, key="none"):
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60)
    [model] = client.models.list().data
    assert client.models.retrieve(model.id).max_model_len == model.max_model_len

    ask = {
        "model": model.id,
        "messages": [{"role": "user", "content": "licensee may copy"}],
        "temperature": 0,
        "max_completion_tokens": 12,
    }
    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0

    named = client.chat.completions.create(**ask, logprobs=True, top_logprobs=1).choices[0].logprobs.content
    assert all(token.top_logprobs[0].logprob == token.logprob for token in named)

    prompt = {"model": model.id, "prompt": [75, 298, 68], "max_tokens": 8, "temperature": 0, "seed": 1}
    whole = client.completions.create(**prompt, n=2)
    assert len(whole.choices) == 2 and whole.choices[0].text == whole.choices[1].text
    assert whole.choices[0].finish_reason in ("length", "stop")
    streamed = client.completions.create(**prompt, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text

    for error, call in [
        (openai.BadRequestError, lambda: client.chat.completions.create(**ask, tools=[{"type": "function", "function": {"name": "f"}}])),
        (openai.NotFoundError, lambda: client.completions.create(model="other", prompt="a")),
        (openai.NotFoundError, lambda: client.embeddings.create(model=model.id, input="a")),
    ]:
        try:
            call()
        except error as raised:
            assert raised.body["message"], raised
        else:
            raise AssertionError(f"no {error.__name__}")
    print(f"{model.id}: OpenAI's client {openai.__version__} is served")


main(*sys.argv[1:])
