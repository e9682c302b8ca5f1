"""A conversation of two turns, by openai-python, with the bridge of ``make run``."""

from openai import OpenAI

BASE = "http://127.0.0.1:8080/v1"

with OpenAI(base_url=BASE, api_key="any string, on the emulator") as client:
    first = client.responses.create(model="emulator", input="My name is Ada.")
    print(first.output_text)
    again = client.responses.create(
        model="emulator", input="What is my name?", previous_response_id=first.id
    )
    print(again.output_text)
