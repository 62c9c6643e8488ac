"""Models and GPUs: models.yaml, gpus.yaml, config.json, safetensors headers, GGUF -> frozen `Model` and `Gpu`."""
