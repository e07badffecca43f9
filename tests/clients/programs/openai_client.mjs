// npm's `openai`. See cells.py for the arguments and what is printed.
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { readFileSync } from "node:fs";

const client = new OpenAI({ maxRetries: 0 });
const model = "glm-4.6v-flash";
const image = `data:image/png;base64,${readFileSync(process.env.PICTURE).toString("base64")}`;
const Shape = z.object({
  colour: z.enum(["red", "blue"]),
  size: z.union([z.literal(1), z.literal(2), z.literal(3)]),
  filled: z.boolean(),
});
const tool = zodFunction({ name: "paint", description: "Paint a shape.", parameters: Shape });
const named = { type: "function", function: { name: "paint" } };
const format = zodResponseFormat(Shape, "shape");

const said = (content) => [{ role: "user", content }];
const ask = async (messages, more = {}) => {
  const answer = await client.chat.completions.create({ model, messages, temperature: 0, ...more });
  return answer.choices[0].message;
};
const call = (made) => ({ name: made.function.name, arguments: made.function.parsed_arguments });

async function tools() {
  const { role, tool_calls } = await ask(said("What can you do?"), { tools: [tool], tool_choice: "required" });
  const results = tool_calls.map(({ id }) => ({ role: "tool", tool_call_id: id, content: "a red circle" }));
  const before = await ask(said("What can you do?"), { tools: [tool], tool_choice: "auto" });
  const after = await ask([...said("What can you do?"), { role, tool_calls }, ...results], { tools: [tool] });
  return { before: before.content, after: after.content };
}

async function forced(tool_choice) {
  const answer = await client.chat.completions.parse({
    model, messages: said("Paint a shape"), tools: [tool], tool_choice, temperature: 0,
  });
  return { call: call(answer.choices[0].message.tool_calls[0]) };
}

async function schema(more = {}) {
  const { choices } = await client.chat.completions.parse({
    model, messages: said("Paint a shape"), response_format: format, temperature: 0, ...more,
  });
  const { tool_calls, parsed } = choices[0].message;
  return tool_calls?.length ? { call: call(tool_calls[0]) } : { document: parsed };
}

const cells = {
  text: async () => ({ text: (await ask(said("Hello"))).content }),
  stream: async () => {
    const pieces = [];
    for await (const chunk of await client.chat.completions.create({
      model, messages: said("Count to three."), temperature: 0, stream: true,
    }))
      pieces.push(chunk.choices[0].delta.content ?? "");
    return { text: pieces.join(""), pieces: pieces.filter(Boolean).length };
  },
  picture: async () => {
    const parts = [{ type: "image_url", image_url: { url: image } }, { type: "text", text: "What do you see?" }];
    return { text: (await ask(said(parts))).content };
  },
  tools,
  required: () => forced("required"),
  named: () => forced(named),
  streamed_call: async () => {
    const stream = client.chat.completions.stream({
      model, messages: said("Paint a shape"), tools: [tool], tool_choice: named, temperature: 0,
    });
    const answer = await stream.finalChatCompletion();
    return { call: call(answer.choices[0].message.tool_calls[0]) };
  },
  schema,
  schema_with_tools: () => schema({ tools: [tool], parallel_tool_calls: false }),
};

for (const cell of process.argv.slice(2)) {
  try {
    console.log(JSON.stringify({ cell, answer: await cells[cell]() }));
  } catch (error) {
    console.log(JSON.stringify({ cell, error: error.stack }));
  }
}
