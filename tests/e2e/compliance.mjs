// Checks a server of the Responses API against the Open Responses specification.
//
//   node --experimental-websocket compliance.mjs [--keeps-context] BASE_URL [TEST...]
//
// BASE_URL ends with /v1. Node 20.10 or newer, no packages; Node 22 needs no flag.
//
// What belongs here: the tests of the specification's compliance suite (over HTTP, over WebSocket,
// and of compaction) and its schemas, in our own words (openresponses.org; its repository has the
// originals under src/lib and schema/). Every response object and every event of a stream is held
// against a schema; a stream has to begin with response.created, number its events upwards, and end
// with its terminal event. One line on standard output for each test; exit code 1 if one fails.
//
// --keeps-context: the server promises more than the specification about responses with
// `store: false`: they can be continued on another connection, and after a continuation that failed.
// In the two tests about that, where the specification asks for previous_response_not_found, the
// turn then has to succeed, with the whole context.
//
// Left out: the tests of hosted search tools, which the suite skips, too, unless it is told what to
// search; and that of the phases of output messages, which asks no server.

// ---------------------------------------------------------------- schemas
//
// A schema is a function of a value and its path that returns what is wrong with it, as texts.

const kindOf = (value) => (value === null ? "null" : Array.isArray(value) ? "array" : typeof value);

const is = (name, test) => (value, path) =>
  test(value) ? [] : [`${path}: expected ${name}, not ${JSON.stringify(value) ?? "nothing"}`];

const string = is("a string", (value) => typeof value === "string");
const number = is("a number", (value) => typeof value === "number");
const integer = is("an integer", Number.isInteger);
const boolean = is("a boolean", (value) => typeof value === "boolean");
const anything = () => [];
const oneOf = (...options) => is(`one of ${options.join(", ")}`, (value) => options.includes(value));
const nullable = (schema) => (value, path) => (value === null ? [] : schema(value, path));
const list = (schema) => (value, path) =>
  Array.isArray(value)
    ? value.flatMap((item, index) => schema(item, `${path}[${index}]`))
    : [`${path}: expected an array, not ${kindOf(value)}`];

// Members whose name ends with "?" may be missing. Others than those named are allowed.
const object = (members) => (value, path) => {
  if (kindOf(value) !== "object") return [`${path}: expected an object, not ${kindOf(value)}`];
  return Object.entries(members).flatMap(([name, schema]) => {
    const key = name.replace("?", "");
    if (!(key in value)) return name === key ? [`${path}.${key}: is missing`] : [];
    return schema(value[key], `${path}.${key}`);
  });
};

// The schema is chosen by the member `type`.
const byType = (schemas) => (value, path) => {
  const schema = schemas[value?.type];
  return schema ? schema(value, path) : [`${path}.type: ${JSON.stringify(value?.type)} is unknown`];
};

const annotation = byType({
  url_citation: object({ url: string, title: string, start_index: integer, end_index: integer }),
});
const logprob = object({
  token: string,
  logprob: number,
  bytes: list(integer),
  top_logprobs: list(object({ token: string, logprob: number, bytes: list(integer) })),
});
const part = byType({
  input_text: object({ text: string }),
  output_text: object({ text: string, annotations: list(annotation), "logprobs?": list(logprob) }),
  text: object({ text: string }),
  summary_text: object({ text: string }),
  reasoning_text: object({ text: string }),
  refusal: object({ refusal: string }),
  input_image: object({ image_url: nullable(string), detail: oneOf("low", "high", "auto") }),
  input_file: object({ "filename?": string, "file_url?": string }),
});
const status = oneOf("in_progress", "completed", "incomplete");
const item = byType({
  message: object({
    id: string,
    status,
    role: oneOf("user", "assistant", "system", "developer"),
    content: list(part),
    "phase?": oneOf("commentary", "final_answer"),
  }),
  function_call: object({ id: string, call_id: string, name: string, arguments: string, status }),
  function_call_output: object({
    id: string,
    call_id: string,
    output: (value, path) => (typeof value === "string" ? [] : list(part)(value, path)),
    status,
  }),
  reasoning: object({
    id: string,
    summary: list(part),
    "content?": list(part),
    "encrypted_content?": string,
  }),
  compaction: object({ id: string, encrypted_content: string, "created_by?": string }),
});
const tool = byType({
  function: object({
    name: string,
    description: nullable(string),
    parameters: nullable(object({})),
    strict: nullable(boolean),
  }),
});
const choice = oneOf("none", "auto", "required");
const functionChoice = object({ type: oneOf("function"), "name?": string });
const toolChoice = (value, path) =>
  kindOf(value) !== "object"
    ? choice(value, path)
    : byType({
        function: functionChoice,
        allowed_tools: object({ tools: list(functionChoice), mode: choice }),
      })(value, path);
const textFormat = byType({
  text: object({}),
  json_object: object({}),
  json_schema: object({
    name: string,
    description: nullable(string),
    schema: anything,
    strict: boolean,
  }),
});
const usage = object({
  input_tokens: integer,
  output_tokens: integer,
  total_tokens: integer,
  input_tokens_details: object({ cached_tokens: integer }),
  output_tokens_details: object({ reasoning_tokens: integer }),
});
const response = object({
  id: string,
  object: oneOf("response"),
  created_at: integer,
  completed_at: nullable(integer),
  status: oneOf("queued", "in_progress", "completed", "incomplete", "failed"),
  incomplete_details: nullable(object({ reason: string })),
  model: string,
  previous_response_id: nullable(string),
  instructions: nullable(string),
  output: list(item),
  error: nullable(object({ code: string, message: string })),
  tools: list(tool),
  tool_choice: toolChoice,
  truncation: oneOf("auto", "disabled"),
  parallel_tool_calls: boolean,
  text: object({ format: textFormat, "verbosity?": oneOf("low", "medium", "high") }),
  top_p: number,
  presence_penalty: number,
  frequency_penalty: number,
  top_logprobs: integer,
  temperature: number,
  reasoning: nullable(
    object({
      effort: nullable(oneOf("none", "low", "medium", "high", "xhigh")),
      summary: nullable(oneOf("concise", "detailed", "auto")),
    }),
  ),
  usage: nullable(usage),
  max_output_tokens: nullable(integer),
  max_tool_calls: nullable(integer),
  store: boolean,
  background: boolean,
  service_tier: string,
  metadata: object({}),
  safety_identifier: nullable(string),
  prompt_cache_key: nullable(string),
});

const inItem = { item_id: string, output_index: integer };
const inPart = { ...inItem, content_index: integer };
const inSummary = { ...inItem, summary_index: integer };
const eventsOf = {
  "response.created": { response },
  "response.queued": { response },
  "response.in_progress": { response },
  "response.completed": { response },
  "response.failed": { response },
  "response.incomplete": { response },
  "response.output_item.added": { output_index: integer, item: nullable(item) },
  "response.output_item.done": { output_index: integer, item: nullable(item) },
  "response.content_part.added": { ...inPart, part },
  "response.content_part.done": { ...inPart, part },
  "response.output_text.delta": { ...inPart, delta: string, "logprobs?": list(logprob) },
  "response.output_text.done": { ...inPart, text: string, "logprobs?": list(logprob) },
  "response.output_text.annotation.added": {
    ...inPart,
    annotation_index: integer,
    annotation: nullable(annotation),
  },
  "response.refusal.delta": { ...inPart, delta: string },
  "response.refusal.done": { ...inPart, refusal: string },
  "response.reasoning.delta": { ...inPart, delta: string },
  "response.reasoning.done": { ...inPart, text: string },
  "response.reasoning_summary_part.added": { ...inSummary, part },
  "response.reasoning_summary_part.done": { ...inSummary, part },
  "response.reasoning_summary_text.delta": { ...inSummary, delta: string },
  "response.reasoning_summary_text.done": { ...inSummary, text: string },
  "response.function_call_arguments.delta": { ...inItem, delta: string },
  "response.function_call_arguments.done": { ...inItem, arguments: string },
  error: {
    error: object({
      type: string,
      code: nullable(string),
      message: string,
      param: nullable(string),
    }),
  },
};
const schemaOfEvent = Object.fromEntries(
  Object.entries(eventsOf).map(([type, members]) => [
    type,
    object({ sequence_number: integer, ...members }),
  ]),
);
const event = byType(schemaOfEvent);
// The same over WebSocket, where errors are no part of a stream.
const messageOfSocket = byType({
  ...schemaOfEvent,
  error: object({
    status: integer,
    error: object({
      "type?": string,
      code: string,
      message: string,
      "param?": nullable(string),
    }),
  }),
});
const compacted = object({
  id: string,
  object: oneOf("response.compaction"),
  created_at: integer,
  output: list(item),
  usage,
});
const TERMINAL = ["response.completed", "response.failed", "response.incomplete"];

// ---------------------------------------------------------------- asking

class Failed extends Error {}

function check(condition, why) {
  if (!condition) throw new Failed(why);
}

function conforms(schema, value, name) {
  const wrong = schema(value, name);
  check(wrong.length === 0, wrong.join("; "));
}

const authorization = "Bearer sk-compliance";

async function post(path, body) {
  const answer = await fetch(`${base}${path}`, {
    method: "POST",
    headers: { "content-type": "application/json", authorization },
    body: JSON.stringify(body),
  });
  const type = answer.headers.get("content-type") ?? "";
  return { status: answer.status, text: await answer.text(), type };
}

async function send(body, path = "/responses") {
  const answer = await post(path, { model: "emulator", ...body });
  check(answer.status === 200, `HTTP ${answer.status}: ${answer.text}`);
  return answer;
}

// The response object of a JSON answer.
async function ask(body) {
  const { text, type } = await send({ ...body, stream: false });
  check(type.startsWith("application/json"), `the content type is ${type}`);
  const answer = JSON.parse(text);
  conforms(response, answer, "response");
  return answer;
}

// The events of a stream, and the response object of its terminal event.
async function stream(body) {
  const { text, type } = await send({ ...body, stream: true });
  check(type.startsWith("text/event-stream"), `the content type is ${type}`);
  const blocks = text.split("\n\n").filter((block) => /^data:/m.test(block));
  if (blocks.at(-1)?.trim() === "data: [DONE]") blocks.pop(); // some servers end streams with it
  const events = blocks.map(readEvent);
  return { events, answer: endOf(events, event) };
}

// The response object at the end of `events`, each of which has to conform to `schema`.
function endOf(events, schema) {
  check(events.length > 0, "the stream has no events");
  events.forEach((found, index) => conforms(schema, found, `event ${index}`));
  const numbers = events.map((found) => found.sequence_number);
  check(
    numbers.every((found, index) => index === 0 || found > numbers[index - 1]),
    `the sequence numbers do not rise: ${numbers}`,
  );
  check(events[0].type === "response.created", `the first event is ${events[0].type}`);
  const ends = events.filter((found) => TERMINAL.includes(found.type));
  check(ends.length === 1 && ends[0] === events.at(-1), "there is not one terminal event at the end");
  return ends[0].response;
}

function readEvent(block) {
  const lines = block.split("\n");
  const of = (name) =>
    lines.filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).trim());
  const found = JSON.parse(of("data").join("\n"));
  check(of("event")[0] === found.type, `event: ${of("event")}, but its data is ${found.type}`);
  return found;
}

// The compaction object of a JSON answer.
async function compact(input) {
  const { text } = await send({ input }, "/responses/compact");
  const answer = JSON.parse(text);
  conforms(compacted, answer, "compaction");
  check(answer.output.some((found) => found.type === "compaction"), "there is no compaction item");
  return answer;
}

// A WebSocket connection. A turn is over with its terminal event, or with an error.
class Connection {
  constructor() {
    this.messages = [];
    this.wake = () => {};
    // Node takes headers here, as an addition to the standard of browsers.
    this.socket = new WebSocket(`${base.replace(/^http/, "ws")}/responses`, {
      headers: { authorization },
    });
    this.socket.onmessage = ({ data }) => this.add(JSON.parse(data));
    this.socket.onclose = ({ code, reason }) => this.add(new Failed(`closed: ${code} ${reason}`));
    this.opened = new Promise((resolve, reject) => {
      this.socket.onopen = resolve;
      this.socket.onerror = () => reject(new Failed("the WebSocket does not open"));
    });
  }

  add(message) {
    this.messages.push(message);
    this.wake();
  }

  async message() {
    while (this.messages.length === 0) {
      await new Promise((resolve, reject) => {
        this.wake = resolve;
        setTimeout(() => reject(new Failed("no message for 30 seconds")), 30_000).unref();
      });
    }
    const message = this.messages.shift();
    if (message instanceof Failed) throw message;
    return message;
  }

  // What a turn ends with: `answer`, its response object, or `error`, an error message.
  async turn(body) {
    await this.opened;
    this.socket.send(JSON.stringify({ type: "response.create", model: "emulator", ...body }));
    const events = [];
    for (;;) {
      const message = await this.message();
      if (message.type === "error") return { error: message };
      events.push(message);
      if (TERMINAL.includes(message.type)) return { events, answer: endOf(events, messageOfSocket) };
    }
  }

  // The response object of a turn that must not fail.
  async ask(body) {
    const { answer, error } = await this.turn(body);
    check(answer, JSON.stringify(error));
    return answer;
  }
}

async function connected(use) {
  const connection = new Connection();
  try {
    return await use(connection);
  } finally {
    connection.socket.close();
  }
}

const isMissing = ({ error }) => {
  check(error, "the response was found");
  conforms(messageOfSocket, error, "error");
  check(error.error.code === "previous_response_not_found", JSON.stringify(error));
};
// A response with `store: false` is not found where the server does not know it any more; or its
// continuation has the context of `first`, if the server promises so.
const isMissingUnlessKept = (turn, first) => {
  if (!keepsContext) return isMissing(turn);
  check(turn.answer, JSON.stringify(turn.error));
  continues(turn.answer, first);
};
const continues = (answer, first) => {
  completed(answer);
  check(answer.usage.input_tokens > first.usage.input_tokens, "the context did not grow");
};

const completed = (answer) => {
  check(answer.status === "completed", `the status is ${answer.status}`);
  check(answer.output.length > 0, "there are no output items");
};
const said = (answer) =>
  answer.output.flatMap((found) => found.content ?? []).map((found) => found.text).join("");
const callOf = (answer) => {
  const call = answer.output.find((found) => found.type === "function_call");
  check(call, "there is no function call");
  return call;
};

// ---------------------------------------------------------------- the tests

const message = (role, content, more) => ({ type: "message", role, content, ...more });
const question = message("user", "How is the weather in Oslo today?");
const tools = [
  {
    type: "function",
    name: "get_weather",
    description: "Tells the weather at a place.",
    parameters: {
      type: "object",
      properties: { place: { type: "string", description: "A city and its country" } },
      required: ["place"],
    },
  },
];
// One black pixel; and a text file, "Title: a file".
const PIXEL =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==";
const FILE = "VGl0bGU6IGEgZmlsZQ==";

const tests = {
  "basic-response": async () => {
    completed(await ask({ input: [message("user", "Greet me in three words.")] }));
  },

  "assistant-phase": async () => {
    const input = [
      message("assistant", "Let me look up the number.", { phase: "commentary" }),
      message("assistant", "It is seven.", { phase: "final_answer" }),
      message("user", "Which number is it?"),
    ];
    completed(await ask({ input }));
  },

  "streaming-response": async () => {
    const { events, answer } = await stream({ input: [message("user", "Count to five.")] });
    completed(answer);
    const deltas = events.filter((found) => found.type === "response.output_text.delta");
    const joined = deltas.map((found) => found.delta).join("");
    check(joined === said(answer), `the deltas say ${joined}, the response ${said(answer)}`);
  },

  "system-prompt": async () => {
    const input = [message("system", "Talk like a sailor."), message("user", "Greet me.")];
    completed(await ask({ input }));
  },

  "tool-calling": async () => {
    const call = callOf(await ask({ input: [question], tools }));
    check(call.name === "get_weather", `the function is ${call.name}`);
    conforms(object({ place: string }), JSON.parse(call.arguments), "arguments");
  },

  "tool-calling-streaming": async () => {
    const { events, answer } = await stream({ input: [question], tools });
    const call = callOf(answer);
    for (const type of ["added", "done"]) {
      const of = events.filter((found) => found.type === `response.output_item.${type}`);
      check(of.some((found) => found.item.type === "function_call"), `no call was ${type}`);
    }
    const deltas = events.filter((found) => found.type === "response.function_call_arguments.delta");
    check(deltas.length > 0, "there are no deltas of arguments");
    check(deltas.map((found) => found.delta).join("") === call.arguments, "the deltas differ");
    const done = events.find((found) => found.type === "response.function_call_arguments.done");
    check(done?.arguments === call.arguments, "the arguments are not said to be done");
  },

  "function-call-roundtrip": async () => {
    const choose = { type: "function", name: "get_weather" };
    const first = await ask({ input: [question], tools, tool_choice: choose });
    const call = callOf(first);
    const output = { type: "function_call_output", call_id: call.call_id, output: "12 degrees" };
    const next = { previous_response_id: first.id, tools, input: [output] };
    const chained = await ask(next);
    completed(chained);
    check(chained.previous_response_id === first.id, "previous_response_id is not shown");
    completed(await ask({ input: [question, ...first.output, output], tools }));
  },

  "image-input": async () => {
    const content = [
      { type: "input_text", text: "What is in this picture?" },
      { type: "input_image", image_url: `data:image/png;base64,${PIXEL}` },
    ];
    completed(await ask({ input: [message("user", content)] }));
  },

  "file-input": async () => {
    const content = [
      { type: "input_text", text: "What is the title of this file?" },
      { type: "input_file", filename: "a.txt", file_data: `data:text/plain;base64,${FILE}` },
    ];
    completed(await ask({ input: [message("user", content)] }));
  },

  "multi-turn": async () => {
    const input = [
      message("user", "I am called Ada."),
      message("assistant", "Hello, Ada."),
      message("user", "What am I called?"),
    ];
    completed(await ask({ input }));
  },

  "previous-response-id": async () => {
    const first = await ask({ input: "The word is pear. Just say yes." });
    const second = await ask({ input: "What is the word?", previous_response_id: first.id });
    check(second.previous_response_id === first.id, "previous_response_id is not shown");
    continues(second, first);
  },

  "compact-response": async () => {
    await compact([
      message("user", "The meeting is on Monday, and Ada brings the plan."),
      message("assistant", "Monday it is, and the plan comes from Ada."),
    ]);
  },

  "compact-missing-model": async () => {
    const answer = await post("/responses/compact", { input: [message("user", "Be brief.")] });
    check([400, 422].includes(answer.status), `HTTP ${answer.status}: ${answer.text}`);
  },

  "websocket-response": async () => {
    await connected(async (connection) => {
      const input = [message("user", "Count to two.")];
      const { events, answer, error } = await connection.turn({ input });
      check(answer, JSON.stringify(error));
      completed(answer);
      const deltas = events.filter((found) => found.type === "response.output_text.delta");
      check(deltas.map((found) => found.delta).join("") === said(answer), "the deltas differ");
    });
  },

  "websocket-sequential-responses": async () => {
    await connected(async (connection) => {
      completed(await connection.ask({ store: false, input: "Say one." }));
      completed(await connection.ask({ store: false, input: "Say two." }));
    });
  },

  "websocket-continuation": async () => {
    await connected(async (connection) => {
      const first = await connection.ask({ store: false, input: "The word is plum. Just say yes." });
      const next = { store: false, previous_response_id: first.id, input: "What is the word?" };
      continues(await connection.ask(next), first);
    });
  },

  "websocket-generate-false": async () => {
    await connected(async (connection) => {
      const body = { store: false, generate: false, input: "You will be asked for a word." };
      const first = await connection.ask(body);
      check(first.output.length === 0, "there is output");
      const next = { store: false, previous_response_id: first.id, input: "A word, please." };
      completed(await connection.ask(next));
    });
  },

  "websocket-previous-response-not-found": async () => {
    await connected(async (connection) => {
      const anchor = `resp_of_nobody_${Date.now()}`;
      isMissing(await connection.turn({ store: false, previous_response_id: anchor, input: "Go on." }));
    });
  },

  "websocket-reconnect-store-false-recovery": async () => {
    const input = "The word is fig. Just say yes.";
    const first = await connected((connection) => connection.ask({ store: false, input }));
    await connected(async (connection) => {
      const next = { store: false, previous_response_id: first.id, input: "What is the word?" };
      isMissingUnlessKept(await connection.turn(next), first);
      completed(await connection.ask({ store: false, input: [message("user", "Start afresh.")] }));
    });
  },

  "websocket-failed-continuation-evicts-cache": async () => {
    await connected(async (connection) => {
      const first = await connection.ask({ store: false, input: "The word is nut. Just say yes." });
      const next = { store: false, previous_response_id: first.id };
      const output = { type: "function_call_output", call_id: "call_of_nobody", output: "42" };
      const { error, answer } = await connection.turn({ ...next, input: [output] });
      check(error || answer.status === "failed", "an output without its call was accepted");
      const again = await connection.turn({ ...next, input: "What is the word?" });
      isMissingUnlessKept(again, first);
    });
  },

  "websocket-compact-new-chain": async () => {
    const { output } = await compact([
      message("user", [{ type: "input_text", text: "The word is oat." }]),
      message("assistant", [{ type: "output_text", text: "Yes." }]),
      message("user", [{ type: "input_text", text: "Put this in a few words, to go on later." }]),
    ]);
    const input = [...output, message("user", "What is the word?")];
    await connected(async (connection) => {
      completed(await connection.ask({ store: false, input, tools: [] }));
    });
  },
};

// ---------------------------------------------------------------- running

const given = process.argv.slice(2);
const keepsContext = given[0] === "--keeps-context";
const [base, ...wanted] = keepsContext ? given.slice(1) : given;
if (!base) {
  console.error("usage: node compliance.mjs [--keeps-context] BASE_URL [TEST...]");
  process.exit(2);
}
let failed = 0;
for (const [name, test] of Object.entries(tests)) {
  if (wanted.length > 0 && !wanted.includes(name)) continue;
  try {
    await test();
    console.log(`passed ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED ${name}: ${error instanceof Failed ? error.message : error.stack}`);
  }
}
process.exit(failed > 0 ? 1 : 0);
