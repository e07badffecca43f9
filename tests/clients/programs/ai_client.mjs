// npm's `ai` with `@ai-sdk/openai-compatible`. See cells.py for the arguments and what is printed.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, isStepCount, Output, streamText, tool } from "ai";
import { z } from "zod";
import { readFileSync } from "node:fs";

const provider = createOpenAICompatible({
  name: "glm",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
  supportsStructuredOutputs: true,
});
const fixed = { model: provider("glm-4.6v-flash"), temperature: 0, maxRetries: 0 };
const Shape = z.object({
  colour: z.enum(["red", "blue"]),
  size: z.union([z.literal(1), z.literal(2), z.literal(3)]),
  filled: z.boolean(),
});
const definition = { description: "Paint a shape.", inputSchema: Shape };
const output = Output.object({ schema: Shape });
const call = (made) => ({ call: { name: made.toolName, arguments: made.input } });
const thrown = (error) => {
  throw error;
};

async function tools() {
  const paint = tool({ ...definition, execute: async () => "a red circle" });
  const before = await generateText({ ...fixed, prompt: "What can you do?", tools: { paint }, toolChoice: "auto" });
  const after = await generateText({
    ...fixed,
    prompt: "What can you do?",
    tools: { paint },
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "auto" }),
    stopWhen: isStepCount(2),
  });
  if (after.steps.length !== 2) throw new Error(`${after.steps.length} steps`);
  return { before: before.text, after: after.text };
}

async function forced(toolChoice) {
  const { toolCalls } = await generateText({
    ...fixed, prompt: "Paint a shape", tools: { paint: tool(definition) }, toolChoice,
  });
  return call(toolCalls[0]);
}

const cells = {
  text: async () => ({ text: (await generateText({ ...fixed, prompt: "Hello" })).text }),
  stream: async () => {
    const pieces = [];
    const { textStream } = streamText({ ...fixed, prompt: "Count to three.", onError: ({ error }) => thrown(error) });
    for await (const piece of textStream) pieces.push(piece);
    return { text: pieces.join(""), pieces: pieces.filter(Boolean).length };
  },
  picture: async () => {
    const content = [
      { type: "file", data: readFileSync(process.env.PICTURE), mediaType: "image/png" },
      { type: "text", text: "What do you see?" },
    ];
    return { text: (await generateText({ ...fixed, messages: [{ role: "user", content }] })).text };
  },
  tools,
  required: () => forced("required"),
  named: () => forced({ type: "tool", toolName: "paint" }),
  streamed_call: async () => {
    const { toolCalls } = streamText({
      ...fixed,
      prompt: "Paint a shape",
      tools: { paint: tool(definition) },
      toolChoice: { type: "tool", toolName: "paint" },
      onError: ({ error }) => thrown(error),
    });
    return call((await toolCalls)[0]);
  },
  schema: async () => ({ document: (await generateText({ ...fixed, prompt: "Paint a shape", output })).output }),
  schema_with_tools: async () => {
    const answer = await generateText({
      ...fixed, prompt: "Paint a shape", tools: { paint: tool(definition) }, output,
    });
    return answer.toolCalls.length ? call(answer.toolCalls[0]) : { document: answer.output };
  },
};

for (const cell of process.argv.slice(2)) {
  try {
    console.log(JSON.stringify({ cell, answer: await cells[cell]() }));
  } catch (error) {
    console.log(JSON.stringify({ cell, error: error.stack }));
  }
}
