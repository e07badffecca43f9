"""POST /v1/completions, OpenAI's oldest format: the text of a prompt as it is, without the chat template."""
