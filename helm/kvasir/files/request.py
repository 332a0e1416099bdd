"""Sends one chat request and ends with 0 when there is an answer: URL KEY_FILE CA [CERT KEY].

KEY_FILE has the API key; it and CA may be "".
"""

import json
import ssl
import sys
import urllib.request

url, key_file, ca, *certificate = sys.argv[1:]
context = ssl.create_default_context(cafile=ca or None)
if certificate:
    context.load_cert_chain(*certificate)
headers = {"content-type": "application/json"}
if key_file:
    with open(key_file) as file:
        headers["authorization"] = f"Bearer {file.read().strip()}"


def ask(path, body=None):
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url + path, data, headers)
    https = urllib.request.HTTPSHandler(context=context)
    with urllib.request.build_opener(https).open(request, timeout=90) as response:
        return json.load(response)


model = ask("/v1/models")["data"][0]["id"]
question = [{"role": "user", "content": "What is the capital of France?"}]
answer = ask(
    "/v1/chat/completions",
    {"model": model, "messages": question, "max_tokens": 16, "temperature": 0},
)
text = answer["choices"][0]["message"]["content"]
print(f"{model}: {text!r}, {answer['usage']}")
sys.exit(answer["usage"]["completion_tokens"] < 1)
