// openai-node: turns continue the previous response by its id.
//
// Variants: "http" (responses.create) and "ws" (ResponsesWS, a WebSocket).

import OpenAI from "openai";
import { ResponsesWS } from "openai/resources/responses/ws";

import { CONVERSATION, TASK, getWeather, report } from "./conversation.mjs";

const COMMON = { model: CONVERSATION.model, tools: [CONVERSATION.tool], store: false };
const client = new OpenAI({ baseURL: TASK.base_url, apiKey: TASK.key, maxRetries: 0 });

function outputs(response) {
  return response.output
    .filter((item) => item.type === "function_call")
    .map((item) => ({
      type: "function_call_output",
      call_id: item.call_id,
      output: getWeather(JSON.parse(item.arguments)),
    }));
}

function textOf(response) {
  const parts = response.output.flatMap((item) => item.content ?? []);
  return parts.map((part) => part.text ?? "").join("");
}

async function overHttp(input, previous) {
  const body = { ...COMMON, input, previous_response_id: previous };
  if (!TASK.stream) return await client.responses.create(body);
  for await (const event of await client.responses.create({ ...body, stream: true })) {
    if (event.type === "response.completed") return event.response;
  }
  throw new Error("the stream ended without response.completed");
}

function overSocket(socket) {
  return (given, previous) =>
    new Promise((resolve, reject) => {
      const input =
        typeof given === "string" ? [{ type: "message", role: "user", content: given }] : given;
      socket.once("response.completed", (event) => resolve(event.response));
      socket.once("error", reject);
      socket.send({
        type: "response.create",
        ...COMMON,
        input,
        ...(previous ? { previous_response_id: previous } : {}),
      });
    });
}

const socket = TASK.variant === "ws" ? new ResponsesWS(client) : undefined;
const ask = socket ? overSocket(socket) : overHttp;
const answers = [];
let previous;
for (const question of CONVERSATION.questions) {
  let response = await ask(question, previous);
  for (let given = outputs(response); given.length; given = outputs(response)) {
    response = await ask(given, response.id);
  }
  previous = response.id;
  answers.push(textOf(response));
}
socket?.close();
report(answers);
