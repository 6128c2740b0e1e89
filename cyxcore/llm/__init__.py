"""Language models: GGUF files of the llama family, their tokenizers, and generating text with many requests at once."""
