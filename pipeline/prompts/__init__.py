"""From questions to token ids: messages, templates, and how a prompt, a thought and an answer join."""
