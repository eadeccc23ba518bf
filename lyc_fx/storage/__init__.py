"""Files: safetensors read and written, their headers, and what the operating system does."""
