// Vercel AI SDK: generateText and streamText with the provider @ai-sdk/openai, which calls tools by
// itself.
//
// Variants: "history" (the messages are sent again; `store` is left out), "history-unstored" (the
// same with store: false) and "id" (previousResponseId with the new messages only, store: false).

import { createOpenAI } from "@ai-sdk/openai";
import { generateText, isStepCount, streamText, tool } from "ai";
import { z } from "zod";

import { CONVERSATION, TASK, getWeather, report } from "./conversation.mjs";

const model = createOpenAI({ baseURL: TASK.base_url, apiKey: TASK.key }).responses(
  CONVERSATION.model,
);
const tools = {
  [CONVERSATION.tool.name]: tool({
    description: CONVERSATION.tool.description,
    inputSchema: z.object({ city: z.string() }),
    execute: async (given) => getWeather(given),
  }),
};
const settings = TASK.variant === "history" ? {} : { store: false };
const byId = TASK.variant === "id";

async function run(settings) {
  if (!TASK.stream) {
    const result = await generateText(settings);
    return { text: result.text, messages: result.responseMessages, steps: result.steps };
  }
  const result = streamText({ ...settings, onError: ({ error }) => console.error(error) });
  const text = await result.text;
  return { text, messages: await result.responseMessages, steps: await result.steps };
}

const answers = [];
let messages = [];
let previous;
for (const question of CONVERSATION.questions) {
  const asked = { role: "user", content: question };
  const continued = byId && previous ? { previousResponseId: previous } : {};
  const result = await run({
    model,
    tools,
    maxRetries: 0,
    messages: byId ? [asked] : [...messages, asked],
    stopWhen: isStepCount(3),
    providerOptions: { openai: { ...settings, ...continued } },
  });
  messages = [...messages, asked, ...result.messages];
  previous = result.steps.at(-1).providerMetadata.openai.responseId;
  answers.push(result.text);
}
report(answers);
