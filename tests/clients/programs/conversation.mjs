// What all programs in JavaScript share: the conversation, and the task. conversation.py says what a
// program is called with and what it prints.

import { readFileSync } from "node:fs";

export const CONVERSATION = JSON.parse(
  readFileSync(new URL("conversation.json", import.meta.url), "utf-8"),
);
export const TASK = JSON.parse(process.argv[2]);

export function getWeather({ city }) {
  return `rain in ${city}`;
}

export function report(answers) {
  console.log(JSON.stringify({ answers }));
}
